"""Strings of an Arrow array as Python's, whatever Spark has put into them."""

import pyarrow as pa

from spark_vision.errors import InputTypeError


def check_texts(array: pa.Array, function: str) -> pa.Array:
    """Make sure that an array holds strings.

    Args:
        array: Of a column that `function` reads.
        function: Its name in the message.

    Raises:
        InputTypeError: It holds something else.
    """
    if pa.types.is_null(array.type):  # a pandas batch of nulls alone
        array = array.cast(pa.string())
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise InputTypeError(
            f"{function} got a column of {array.type}; allowed: string. Cast it, or choose another"
        )
    return array


def read_texts(array: pa.Array) -> list[str | None]:
    """Read strings; Spark does not check that they are UTF-8, and one that is not ends no task."""
    stored = array.cast(pa.large_binary()).to_pylist()
    return [None if text is None else text.decode("utf-8", "replace") for text in stored]
