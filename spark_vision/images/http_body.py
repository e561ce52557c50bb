"""Reads an HTTP response body, decompressed in pieces if a server compresses it unasked."""

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
    response: httpcore.Response,
    headers: httpx.Headers,
    transfer: Transfer,
    shown: str,
    while_waiting: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Read a whole body into a transfer.

    Args:
        response: The response, with its body not read yet.
        headers: The response's headers.
        transfer: Counts the received and the decompressed bytes.
        shown: The redacted address, for messages.
        while_waiting: Creates a context that is entered while the transfer waits for memory.

    Raises:
        RowFailure: `http_error`, `timeout`, `too_large` or `incomplete`.
    """
    content_length = headers.get("Content-Length", "")
    if content_length.isdecimal():
        transfer.check_size(int(content_length))
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    pieces = response.iter_stream()
    if encoding in ("gzip", "x-gzip", "deflate"):
        pieces = _inflate(pieces, transfer, shown, may_have_members=encoding != "deflate")
    elif encoding not in ("identity", ""):
        raise RowFailure(Status.HTTP_ERROR, f"the response has an unrequested encoding: {shown}")
    try:
        for piece in pieces:
            transfer.append(piece, while_waiting())
    except (httpcore.RemoteProtocolError, httpcore.ReadError):
        raise RowFailure(Status.INCOMPLETE, f"the response is truncated: {shown}") from None
    except zlib.error:
        raise RowFailure(
            Status.HTTP_ERROR, f"the compressed response is corrupt: {shown}"
        ) from None


def _inflate(
    pieces: Iterator[bytes], transfer: Transfer, shown: str, *, may_have_members: bool
) -> Iterator[bytes]:
    """Decompress zlib, or the members of gzip one after another; nothing else may follow."""
    inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
    compressed_bytes = 0
    for piece in pieces:
        compressed_bytes += len(piece)
        transfer.check_size(compressed_bytes)
        waiting = piece
        while waiting:
            if inflater.eof:
                if not may_have_members:
                    raise zlib.error("bytes after the end of the stream")
                inflater = zlib.decompressobj(_GZIP)
            inflated = inflater.decompress(waiting, _INFLATED_PIECE_BYTES)
            waiting = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if inflated:
                yield inflated
    if not inflater.eof:
        raise RowFailure(Status.INCOMPLETE, f"the compressed response is truncated: {shown}")
