"""Reads the rows of an Arrow column as encoded images: bytes, image structs, base64, URLs.

Null values and blank strings are `null_input`. Empty bytes are a value; decoding rejects them.
"""

import binascii
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import torch

from spark_vision.errors import InputTypeError, RowFailure, Status
from spark_vision.images.byte_rows import ByteRows, tensor_view
from spark_vision.images.fetch import MAX_ADDRESS_CHARACTERS, Fetcher, address_too_long
from spark_vision.operators import ImageLimits, ImageOperator

EncodedImage: TypeAlias = torch.Tensor
"""The bytes of an image file: uint8 `[bytes]`, often a view of read-only memory."""

_BINARY_TYPES = ("binary", "large_binary", "binary_view")
_STRING_TYPES = ("string", "large_string", "string_view")
_IMAGE_STRUCT_FIELDS = ("height", "width", "nChannels", "mode", "data")
_BINARY_FILE_FIELD = "content"
_UNDEFINED_MODE = -1
_DATA_URL = re.compile(rb"\s*data:[^,]*,", re.IGNORECASE)
_LONGEST_DATA_PREFIX = 256
_WHITESPACE = b" \t\r\n\f\v"
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class RawImage:
    """The pixels of Spark's image struct.

    Attributes:
        height: Number of rows.
        width: Pixels per row.
        channels: Bytes per pixel.
        mode: OpenCV's pixel type, such as 16 for three bytes in the order BGR.
        data: The pixels row by row, uint8 `[bytes]`; a read-only view.
    """

    height: int
    width: int
    channels: int
    mode: int
    data: torch.Tensor


class ImageColumn(ABC):
    """One Arrow array of images, read row by row, from any thread."""

    needs_fetch: bool = False
    """Whether reading a row blocks on network or disk."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(
        self, row: int, on_bytes: Callable[[int], None] | None = None
    ) -> EncodedImage | RawImage:
        """Return one row's image, not decoded.

        Args:
            row: Index within this array.
            on_bytes: Called with the size of each fetched piece before it is kept in memory; it
                may block. Not called for rows that need no fetch.

        Raises:
            RowFailure: `null_input`, or the reason why the bytes cannot be read.
        """


def check_input_type(data_type: pa.DataType, image_src_type: str) -> None:
    """Reject a column type that cannot hold images.

    Raises:
        InputTypeError: The message names the type, what is allowed, and what to change.
    """
    kind = data_type.value_type if pa.types.is_dictionary(data_type) else data_type
    if _is_binary(kind) or pa.types.is_null(kind):
        return
    if str(kind) in _STRING_TYPES:
        if image_src_type != "image_binary":
            return
        raise InputTypeError(
            "the image column has strings, but image_src_type='image_binary' requires binary; "
            "set image_src_type to 'image_url' or 'image_base64', or pass a binary column"
        )
    allowed = (
        "allowed: a binary column, Spark's image struct, a struct with a binary field 'content' "
        "(a row of binaryFile), or strings with image_src_type 'image_url' or 'image_base64'"
    )
    if not pa.types.is_struct(kind):
        raise InputTypeError(f"the image column has type {kind}; {allowed}")
    fields = {field.name: field.type for field in kind}
    if _BINARY_FILE_FIELD in fields and _is_binary(fields[_BINARY_FILE_FIELD]):
        return
    integers = [fields.get(name) for name in _IMAGE_STRUCT_FIELDS[:-1]]
    if not all(field is not None and pa.types.is_integer(field) for field in integers) or not (
        "data" in fields and _is_binary(fields["data"])
    ):
        raise InputTypeError(
            f"the image column is a struct of {', '.join(fields) or 'nothing'}; {allowed}; "
            "select the field with the image"
        )


def open_column(array: pa.Array, operator: ImageOperator, fetcher: Fetcher) -> ImageColumn:
    """Open an array of images for reading; cheap for any length.

    Raises:
        InputTypeError: As `check_input_type` does.
    """
    check_input_type(array.type, operator.image_src_type)
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if pa.types.is_struct(kind):
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        return _open_struct(array, operator.limits)
    if _is_binary(kind) or pa.types.is_null(kind):
        return _BinaryColumn(ByteRows(array), operator.limits)
    is_url = operator.image_src_type == "image_url"
    return _StringColumn(ByteRows(array), operator.limits, fetcher if is_url else None)


class _BinaryColumn(ImageColumn):
    def __init__(self, rows: ByteRows, limits: ImageLimits) -> None:
        self._rows = rows
        self._max_bytes = limits.max_bytes

    def __len__(self) -> int:
        return len(self._rows)

    def read(
        self, row: int, on_bytes: Callable[[int], None] | None = None
    ) -> EncodedImage | RawImage:
        data = self._rows[row]
        if data is None:
            raise _null_input()
        if len(data) > self._max_bytes:
            raise _too_large(len(data), self._max_bytes)
        return data


class _StringColumn(ImageColumn):
    def __init__(self, rows: ByteRows, limits: ImageLimits, fetcher: Fetcher | None) -> None:
        self._rows = rows
        self._max_bytes = limits.max_bytes
        self._fetcher = fetcher
        self.needs_fetch = fetcher is not None

    def __len__(self) -> int:
        return len(self._rows)

    def read(
        self, row: int, on_bytes: Callable[[int], None] | None = None
    ) -> EncodedImage | RawImage:
        data = self._rows[row]
        if data is None:
            raise _null_input()
        text = data.numpy().data
        if not bytes(text[:64]).strip() and not bytes(text).strip():
            raise RowFailure(Status.NULL_INPUT, "the string is blank")
        if self._fetcher is None or bytes(text[:64]).lstrip()[:5].lower() == b"data:":
            return tensor_view(decode_base64(text, self._max_bytes))
        if len(text) > 4 * MAX_ADDRESS_CHARACTERS:  # UTF-8 needs at most 4 bytes per character
            raise address_too_long()
        try:
            address = str(text, "utf-8")
        except UnicodeDecodeError:
            raise RowFailure(Status.READ_ERROR, "the address is not valid UTF-8") from None
        return tensor_view(self._fetcher.fetch(address, on_bytes))


def decode_base64(text: memoryview, max_bytes: int) -> bytes:
    """Decode base64 in the standard or the URL-safe alphabet.

    A `data:…;base64,` prefix, whitespace anywhere and missing padding are accepted.

    Args:
        text: The characters, as UTF-8.
        max_bytes: Maximum bytes of the result, checked before decoding.

    Raises:
        RowFailure: `too_large`, or `bad_base64` for other text.
    """
    prefix = _DATA_URL.match(bytes(text[:_LONGEST_DATA_PREFIX]))
    if prefix is not None:
        if not prefix[0].lower().rstrip(b",").rstrip().endswith(b";base64"):
            raise RowFailure(Status.BAD_BASE64, "the data: URL is not base64")
        text = text[prefix.end() :]
    if len(text) // 4 * 3 - bytes(text[-2:]).count(b"=") <= max_bytes:
        try:
            # Most texts are plain (standard alphabet, padded, no whitespace) and need no copy.
            return binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            pass
    characters = bytes(text).translate(_URL_SAFE_TO_STANDARD, _WHITESPACE).rstrip(b"=")
    if len(characters) * 3 // 4 > max_bytes:
        raise RowFailure(Status.TOO_LARGE, f"the image has more than {max_bytes:,} bytes")
    try:
        return binascii.a2b_base64(characters + b"=" * (-len(characters) % 4), strict_mode=True)
    except binascii.Error as error:
        raise RowFailure(Status.BAD_BASE64, f"the text is not base64: {error}") from error


class _ImageStructColumn(ImageColumn):
    """A column of Spark's image struct; its mode is -1 for an image that Spark could not read."""

    def __init__(self, array: pa.StructArray, limits: ImageLimits) -> None:
        self._is_null = array.is_null().to_pylist()
        self._numbers = [array.field(name).to_pylist() for name in _IMAGE_STRUCT_FIELDS[:-1]]
        self._data = ByteRows(array.field("data"))
        self._max_bytes = limits.max_bytes

    def __len__(self) -> int:
        return len(self._is_null)

    def read(
        self, row: int, on_bytes: Callable[[int], None] | None = None
    ) -> EncodedImage | RawImage:
        height, width, channels, mode = (numbers[row] for numbers in self._numbers)
        data = self._data[row]
        if self._is_null[row] or data is None or None in (height, width, channels, mode):
            raise _null_input()
        if mode == _UNDEFINED_MODE:
            raise RowFailure(Status.NOT_AN_IMAGE, "Spark marked the image as undefined")
        if len(data) > self._max_bytes:
            raise _too_large(len(data), self._max_bytes)
        return RawImage(height, width, channels, mode, data)


def _open_struct(array: pa.StructArray, limits: ImageLimits) -> ImageColumn:
    fields = {field.name: field.type for field in array.type}
    if _BINARY_FILE_FIELD not in fields or not _is_binary(fields[_BINARY_FILE_FIELD]):
        return _ImageStructColumn(array, limits)
    # A null struct may have non-null content; flatten combines both masks.
    content = array.flatten()[list(fields).index(_BINARY_FILE_FIELD)]
    return _BinaryColumn(ByteRows(content), limits)


def _is_binary(kind: pa.DataType) -> bool:
    return str(kind) in _BINARY_TYPES or pa.types.is_fixed_size_binary(kind)


def _null_input() -> RowFailure:
    return RowFailure(Status.NULL_INPUT, "the value is null")


def _too_large(size: int, max_bytes: int) -> RowFailure:
    return RowFailure(
        Status.TOO_LARGE, f"the image has {size:,} bytes, more than the {max_bytes:,} allowed"
    )
