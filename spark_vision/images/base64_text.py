"""Decodes image bytes from base64 text, as found in databases, JSON and HTML."""

import binascii
import re

from spark_vision.errors import RowFailure, Status

_DATA_PREFIX = re.compile(rb"\s*data:[^,]*,", re.IGNORECASE)
_LONGEST_PREFIX = 256
_WHITESPACE = b" \t\r\n\f\v"
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: memoryview, max_bytes: int) -> bytes:
    """Decode base64 in the standard or the URL-safe alphabet.

    A `data:…;base64,` prefix, whitespace anywhere and missing padding are accepted.

    Args:
        text: The characters, as UTF-8.
        max_bytes: Maximum bytes of the result, checked before decoding.

    Raises:
        RowFailure: `too_large`, or `bad_base64` for other text.
    """
    prefix = _DATA_PREFIX.match(bytes(text[:_LONGEST_PREFIX]))
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
