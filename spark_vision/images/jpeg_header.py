"""Reads the segments of a JPEG up to its first scan: size, orientation, and the cost of decoding.

It takes one step per segment, with limits on steps and bytes for any input. Only for a JPEG with
several scans (progressive, or one scan per channel) it reads further, to count the scans.
"""

import re
from struct import Struct

from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost
from spark_vision.images.cost import Format, Header
from spark_vision.images.orientation import EXIF_PREFIX, find_exif_orientation, xmp_orientation

MAX_HEADER_BYTES = 16 * 2**20
MAX_SEGMENTS = 4096
MAX_SCANS = 1000

_MARKER_AND_LENGTH = Struct(">HH")
# Decoders skip stray bytes, fill bytes and markers without a length between segments.
_NEXT_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
# After a scan the next segment begins at a marker that cannot occur within pixel data.
_AFTER_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_START_OF_SCAN = 0xFFDA
_END_OF_IMAGE = 0xFFD9
_APP1 = 0xFFE1
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
_PROGRESSIVE = frozenset((0xFFC2, 0xFFC6, 0xFFCA, 0xFFCE))
_SKIPPED = frozenset((0xFFC4, 0xFFC8, 0xFFCC, *range(0xFFDB, 0xFFE1), *range(0xFFE2, 0xFFFF)))
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"


def read_jpeg(data: memoryview) -> Header:
    """Read everything before the pixel data.

    Raises:
        RowFailure: `incomplete`, `decode_error`, or `too_large` for a header of more bytes or
            segments, or an image of more scans, than any encoder writes.
    """
    exif: bytes | None = None
    xmp = b""
    frame_at = 0
    at, end = 2, min(len(data), MAX_HEADER_BYTES)
    for _ in range(MAX_SEGMENTS):
        if at + 4 > end:
            if end < len(data):
                break
            if frame_at:
                # The decoder will find no pixels; a size above the limit is reported first.
                return _measure(data, frame_at, end, exif, xmp)
            raise RowFailure(Status.INCOMPLETE, "the JPEG ends within its header")
        marker, length = _MARKER_AND_LENGTH.unpack_from(data, at)
        if marker in _SKIPPED:
            pass
        elif marker == _APP1:
            payload = data[at + 4 : at + 2 + length]
            if exif is None and payload[: len(EXIF_PREFIX)] == EXIF_PREFIX:
                exif = bytes(payload[len(EXIF_PREFIX) :])
            elif payload[: len(_XMP_PREFIX)] == _XMP_PREFIX:
                xmp = bytes(payload[len(_XMP_PREFIX) :])
        elif marker in _FRAMES:
            frame_at = frame_at or at
        elif marker == _START_OF_SCAN and frame_at:
            return _measure(data, frame_at, at, exif, xmp)
        elif marker in (_START_OF_SCAN, _END_OF_IMAGE):
            raise RowFailure(Status.DECODE_ERROR, "the JPEG has no frame header")
        elif not _NEXT_SEGMENT.match(data, at):
            found = _NEXT_SEGMENT.search(data, at, end)
            at = found.start() if found else end
            continue
        at += 2 + length
    raise RowFailure(
        Status.TOO_LARGE,
        f"the JPEG has a header of over {MAX_HEADER_BYTES:,} bytes or {MAX_SEGMENTS:,} segments",
    )


def _measure(
    data: memoryview, frame_at: int, scan_at: int, exif: bytes | None, xmp: bytes
) -> Header:
    frame = bytes(data[frame_at : frame_at + 10])
    if len(frame) < 10:
        raise RowFailure(Status.INCOMPLETE, "the JPEG ends within its header")
    size = width, height = frame[7] << 8 | frame[8], frame[5] << 8 | frame[6]
    channel_count = frame[9]
    orientation = find_exif_orientation(exif) if exif is not None else None
    if orientation is None:
        orientation = xmp_orientation(xmp) if xmp else 1
    peak_bytes = width * height * cost.RESULT + width * cost.ROW
    is_progressive = frame[0] << 8 | frame[1] in _PROGRESSIVE
    if not is_progressive and data[scan_at + 4 : scan_at + 5] == frame[9:10]:
        return Header(Format.JPEG, size, orientation, True, peak_bytes)
    samples = _count_samples(size, bytes(data[frame_at + 10 : frame_at + 10 + 3 * channel_count]))
    scan_count = _count_scans(data, scan_at)
    peak_bytes += cost.JPEG_COEFFICIENT * samples
    return Header(Format.JPEG, size, orientation, True, peak_bytes, scan_count * samples)


def _count_scans(data: memoryview, at: int) -> int:
    """Count the scans up to the end of the image; another image or a video may follow it."""
    scan_count = 0
    for _ in range(MAX_SEGMENTS):
        found = _AFTER_SCAN.search(data, at)
        if not found or found.end() + 2 > len(data):
            return scan_count
        marker, length = _MARKER_AND_LENGTH.unpack_from(data, found.start())
        if marker == _END_OF_IMAGE:
            return scan_count
        scan_count += marker == _START_OF_SCAN
        if scan_count > MAX_SCANS:
            break
        at = found.end() + length
    raise RowFailure(Status.TOO_LARGE, f"the JPEG has more than {MAX_SCANS:,} scans")


def _count_samples(size: tuple[int, int], channels: bytes) -> int:
    """Count the samples of all channels, some of which may be subsampled."""
    factors = [(max(1, each >> 4), max(1, each & 15)) for each in channels[1::3]]
    max_across = max((across for across, _ in factors), default=1)
    max_down = max((down for _, down in factors), default=1)
    # Minimum coded units: 8 × 8 blocks, times the largest sampling factors.
    units_across = -(-size[0] // (8 * max_across))
    units_down = -(-size[1] // (8 * max_down))
    return sum(64 * units_across * across * units_down * down for across, down in factors)
