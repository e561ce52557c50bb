"""The body of an answer over HTTP, unpacked in pieces where a server compresses it unasked."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpcore
import httpx

from spark_vision.errors import RowFailure, Status
from spark_vision.images.transfer import Transfer

_INFLATED_PIECE_BYTES = 2**16
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_GZIP = zlib.MAX_WBITS | 16


def read_body(
    answer: httpcore.Response,
    headers: httpx.Headers,
    transfer: Transfer,
    shown: str,
    while_waiting: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Read a whole body into a transfer.

    Args:
        answer: Whose body is not read yet.
        headers: The answer's.
        transfer: Counts its bytes, unpacked and as they come.
        shown: What a message shows of the address.
        while_waiting: Makes what is entered while the transfer waits for memory.

    Raises:
        RowFailure: `http_error`, `timeout`, `too_large` or `incomplete`.
    """
    announced = headers.get("Content-Length", "")
    if announced.isdecimal():
        transfer.expect(int(announced))
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    pieces = answer.iter_stream()
    if encoding in ("gzip", "x-gzip", "deflate"):
        pieces = _inflate(pieces, transfer, shown, may_have_members=encoding != "deflate")
    elif encoding not in ("identity", ""):
        raise RowFailure(Status.HTTP_ERROR, f"the answer has an encoding not asked for: {shown}")
    try:
        for piece in pieces:
            transfer.keep(piece, while_waiting())
    except (httpcore.RemoteProtocolError, httpcore.ReadError):
        raise RowFailure(Status.INCOMPLETE, f"the answer broke off: {shown}") from None
    except zlib.error:
        raise RowFailure(Status.HTTP_ERROR, f"the compression is corrupt: {shown}") from None


def _inflate(
    pieces: Iterator[bytes], transfer: Transfer, shown: str, *, may_have_members: bool
) -> Iterator[bytes]:
    """Unpack zlib, or the members of gzip one after the other; nothing else may follow."""
    inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
    compressed_bytes = 0
    for piece in pieces:
        compressed_bytes += len(piece)
        transfer.expect(compressed_bytes)
        waiting = piece
        while waiting:
            if inflater.eof:
                if not may_have_members:
                    raise zlib.error("bytes behind the end of the stream")
                inflater = zlib.decompressobj(_GZIP)
            inflated = inflater.decompress(waiting, _INFLATED_PIECE_BYTES)
            waiting = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if inflated:
                yield inflated
    if not inflater.eof:
        raise RowFailure(Status.INCOMPLETE, f"the compressed answer broke off: {shown}")
