"""Reads strings of Arrow arrays, valid UTF-8 or not."""

import pyarrow as pa

from spark_vision.errors import InputTypeError


def check_texts(array: pa.Array, function: str) -> pa.Array:
    """Check that an array contains strings.

    Args:
        array: The input of a function.
        function: The function's name, for the error.

    Raises:
        InputTypeError: The array has another type.
    """
    if pa.types.is_null(array.type):  # a pandas batch with only nulls
        array = array.cast(pa.string())
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise InputTypeError(
            f"{function} got a column of {array.type}; allowed: string; cast it or choose another"
        )
    return array


def read_texts(array: pa.Array) -> list[str | None]:
    """Read strings. Spark does not validate UTF-8: invalid bytes are replaced, not an error."""
    stored = array.cast(pa.large_binary()).to_pylist()
    return [None if text is None else text.decode("utf-8", "replace") for text in stored]
