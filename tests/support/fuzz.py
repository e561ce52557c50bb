"""Mutated inputs by the thousand: whatever the bytes, there is a result or a failure of the row.

By hand, for as long as you like; the suite runs some hundred cases of each target:

    python tests/support/fuzz.py headers --minutes 10
    python tests/support/fuzz.py decoding --seed 3 --cases 100000
    python tests/support/fuzz.py decoding --seed 3 --first 4711 --cases 1

A case is made of the seed and its number alone. The last line of a run that dies natively names the
seed and where the last hundred cases begin.
"""

import argparse
import functools
import ipaddress
import json
import os
import random
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import httpcore
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from encoded_images import (
    as_tensor,
    encode,
    exif_with_orientation,
    insert_jpeg_segment,
    photo,
    photo_with_alpha,
    png_16_bit,
    tiff_16_bit_rgb,
)
from hostile_images import (
    animated_webp_with_canvas,
    bmp_of_runs,
    gif_with_blocks,
    jpeg_with_scan_per_channel,
    jpeg_with_scans,
    tiff_of_many_tags,
    tiff_of_one_tile,
    webp_with_unflagged_alpha,
)
from spark_vision.errors import RowFailure
from spark_vision.images import http_client
from spark_vision.images.cost import Header
from spark_vision.images.decoding import decode
from spark_vision.images.fetch import Fetcher
from spark_vision.images.headers import read_header
from spark_vision.model_server.channel import Channel, TensorReader, TensorWriter
from spark_vision.operators import ImageLimits, ImageViTEmbedding

MAX_STEPS = 500_000
"""Calls of functions that reading one header may make."""
LIMITS = ImageLimits(max_pixels=200_000)
REPORT_EVERY = 100
OUTSIDE = b"what no string may read"
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1)


class Target(NamedTuple):
    """Something that takes bytes of strangers.

    Attributes:
        make_corpus: Gives inputs to begin with, some kilobytes altogether.
        check: Takes an input; raises for what must never happen.
    """

    make_corpus: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], None]


def mutated(corpus: Sequence[bytes], seed: int, number: int) -> bytes:
    """Make the input of one case."""
    chance = random.Random(f"{seed} {number}")
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        chance.choice(_MUTATIONS)(data, chance, corpus)
    return bytes(data)


def _place(data: bytearray, chance: random.Random) -> int:
    # Headers are where most is decided.
    near = chance.random() < 0.5
    return chance.randrange(min(len(data), 200) if near else len(data)) if data else 0


def _set_byte(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[_place(data, chance)] = chance.randrange(256)


def _flip_bit(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _set_number(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    size = chance.choice((1, 2, 4, 8))
    value = chance.choice(EDGES) % 256**size
    at = _place(data, chance)
    data[at : at + size] = value.to_bytes(size, chance.choice(("little", "big")))


def _cut(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    del data[_place(data, chance) :]


def _remove(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    at = _place(data, chance)
    del data[at : at + chance.randrange(1, 64)]


def _repeat(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    at = _place(data, chance)
    piece = bytes(data[at : at + chance.randrange(1, 64)])
    data[at:at] = piece * chance.choice((1, 2, 50, 1000))


def _insert(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    at = _place(data, chance)
    data[at:at] = chance.randbytes(chance.randrange(1, 64))


def _splice(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    other = chance.choice(corpus)
    data[_place(data, chance) :] = other[chance.randrange(len(other) + 1) :]


_MUTATIONS = (_set_byte, _flip_bit, _set_number, _cut, _remove, _repeat, _insert, _splice)


def make_images() -> list[bytes]:
    """Small images of each format and variant, and small files that ask for much."""
    picture, clear = photo(24, 16), photo_with_alpha(24, 16)
    exif = exif_with_orientation(6)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="8"/>'
    samples = np.arange(16 * 24 * 4, dtype=np.uint16).reshape(16, 24, 4) * 40
    pairs = {"save_all": True, "append_images": [photo(24, 16, 1)]}
    return [
        encode(picture, "JPEG", exif=exif),
        insert_jpeg_segment(encode(picture, "JPEG", progressive=True), 0xE1, xmp),
        encode(picture.convert("CMYK"), "JPEG", quality=30),
        jpeg_with_scans(3),
        jpeg_with_scan_per_channel(3),
        encode(picture, "PNG"),
        encode(picture.convert("P"), "PNG", transparency=3),
        encode(clear, "PNG", exif=exif),
        png_16_bit(samples),
        encode(picture, "WEBP", exif=exif, xmp=b'<x tiff:Orientation="3"/>'),
        encode(clear, "WEBP"),
        encode(clear, "WEBP", lossless=True),
        webp_with_unflagged_alpha(clear),
        animated_webp_with_canvas(64, 48),
        encode(picture, "GIF", **pairs),
        gif_with_blocks(3),
        encode(picture, "BMP"),
        encode(picture.convert("P"), "BMP"),
        bmp_of_runs(16, 4, b"\5\1\0\4abcd\0\0\0\2\1\1\3\2\0\1"),
        encode(picture, "TIFF", exif=exif),
        encode(picture, "TIFF", big_tiff=True),
        encode(clear, "TIFF", compression="tiff_lzw"),
        encode(picture, "TIFF", compression="jpeg"),
        encode(picture.convert("1"), "TIFF", compression="group4"),
        tiff_16_bit_rgb(samples[..., :3]),
        tiff_of_one_tile(64),
        tiff_of_many_tags(20, 100, pointer=34665),
        encode(picture, "AVIF"),
        encode(clear, "AVIF", exif=exif),
        encode(picture, "ICO"),
        encode(picture, "TGA"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ]


def check_header(data: bytes) -> None:
    """A header is read in a bounded number of steps, and makes sense."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    view = memoryview(data)
    sys.setprofile(count)
    try:
        header: Header | None = read_header(view)
    except RowFailure as failure:
        header = None
        _check_failure(failure)
    finally:
        sys.setprofile(None)
    assert steps <= MAX_STEPS, f"{steps:,} calls"
    if header is not None:
        width, height = header.size
        assert width < 2**64, width
        assert height < 2**64, height
        assert 1 <= header.orientation <= 8, header
        assert width < 1 or height < 1 or header.peak_bytes >= 3 * width * height, header
        assert header.work >= 0 or width < 1, header


def check_decoding(data: bytes) -> None:
    """An image is decoded to pixels within the limits, or fails with a reason."""
    # Every second case may be scaled down.
    resized_sizes = [lambda height, width: (1, 1)] if len(data) % 2 else []
    try:
        pixels = decode(as_tensor(data), LIMITS, resized_sizes=resized_sizes)
    except RowFailure as failure:
        _check_failure(failure)
        return
    assert str(pixels.dtype) == "torch.uint8", pixels.dtype
    assert pixels.shape[0] == 3, pixels.shape
    assert 0 < pixels.numel() <= 3 * LIMITS.max_pixels, pixels.shape


def make_addresses() -> list[bytes]:
    """Addresses of every kind that is read, and of kinds that must not be."""
    folder = str(_folder())
    texts = (
        "http://127.0.0.1/a",
        "https://user:hunter2@0x7f.1:80/x?y#z",
        "http://[::ffff:169.254.169.254]/",
        "http://2130706433/",
        "http://１２７.0.0.1/",
        "http://[fe80::1%25lo]/",
        "http://[64:ff9b::7f00:1]/",
        "http://8.8.8.8/",
        "http://xn--bcher-kva.example/",
        "http:\\\\user:hunter2@host/a",
        f"{folder}/root/inside",
        f"file://{folder}/root/../outside",
        f"{folder}/root/link",
        f"{folder}/root/%2e%2e/outside",
        f"zip://x::file://{folder}/outside",
        f"simplecache::file://{folder}/outside",
        f"local:{folder}/outside",
        "reference://x::data:,{}",
        "data:;base64,AAAA",
        "s3://bucket/key",
        "hdfs:/a",
        "/proc/self/environ",
        "/dev/zero",
    )
    return [text.encode() for text in texts]


@functools.cache
def _fetcher() -> Fetcher:
    return Fetcher(ImageViTEmbedding(allow_paths=str(_folder() / "root")))


@functools.cache
def _folder() -> Path:
    """A folder with a root below which files may be read, and a file outside of it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (folder / "root").mkdir()
    (folder / "root" / "inside").write_bytes(b"image")
    (folder / "outside").write_bytes(OUTSIDE)
    (folder / "root" / "link").symlink_to("../outside")
    return folder


def check_address(data: bytes) -> None:
    """A string reaches nothing but public addresses and what is below its root."""
    dialled: list[str] = []

    def connect(_: object, host: str, *__: object) -> None:
        dialled.append(host)
        raise httpcore.ConnectError("refused")

    def resolve(host: str, port: int, *_: object, **__: object) -> list[object]:
        answers = ("127.0.0.1", "10.0.0.1", "8.8.8.8")[: 1 + len(host) % 3]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answers]

    with (
        patch.object(httpcore.SyncBackend, "connect_tcp", connect),
        patch.object(socket, "getaddrinfo", resolve),
        patch.object(http_client, "MAX_RETRIES", 0),
    ):
        try:
            read = _fetcher().fetch(data.decode("utf-8", "replace"))
        except RowFailure as failure:
            _check_failure(failure)
        else:
            assert read != OUTSIDE
    assert all(ipaddress.ip_address(each).is_global for each in dialled), dialled


def make_messages() -> list[bytes]:
    """Packets as clients of a model server write them, for a memory of 1 MiB."""

    def write(tensors: dict[str, torch.Tensor]) -> object:
        layout, descriptor = TensorWriter().write(tensors)
        os.close(descriptor)
        return layout

    layout = write({"ids": torch.zeros(2, 3), "mask": torch.zeros(0)})
    message = {"method": "embed_texts", "arguments": {}, "tensors": layout}
    pixels = write({"pixels": torch.zeros(2, 4, 5, 3).permute(0, 3, 1, 2)})
    other = {"method": "embed_images", "arguments": {"pooling": "cls"}, "tensors": pixels}
    return [json.dumps(each).encode() for each in (message, other)]


def check_message(data: bytes) -> None:
    """A packet is refused, or shows tensors that lie in the client's memory."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    channel = Channel(ours)
    channel._reader = _shared_memory()
    try:
        _, tensors = channel.parse(data)
    except ValueError:
        return
    finally:
        channel.close()
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 2**20, tensors


@functools.cache
def _shared_memory() -> TensorReader:
    reader = TensorReader()
    reader.replace(TensorWriter().write({"x": torch.zeros(1)})[1])
    return reader


def _check_failure(failure: RowFailure) -> None:
    assert failure.reason, failure
    assert len(failure.reason) <= 200, failure
    assert failure.reason.isprintable(), failure


TARGETS = {
    "headers": Target(make_images, check_header),
    "decoding": Target(make_images, check_decoding),
    "addresses": Target(make_addresses, check_address),
    "messages": Target(make_messages, check_message),
}


def fuzz(target: Target, seed: int, numbers: Sequence[int], until: float = float("inf")) -> int:
    """Try cases in turn.

    Args:
        target: What takes the inputs.
        seed: Makes other cases of the same numbers.
        numbers: Of the cases.
        until: When to stop, by the clock `time.monotonic`.

    Returns:
        How many were tried.

    Raises:
        AssertionError: One did what must never happen; its note says how to try it again.
    """
    corpus = target.make_corpus()
    tried = 0
    for number in numbers:
        data = mutated(corpus, seed, number)
        try:
            target.check(data)
        except BaseException as error:
            error.add_note(f"--seed {seed} --first {number} --cases 1, {len(data):,} bytes")
            raise
        tried += 1
        if time.monotonic() > until:
            break
    return tried


def main() -> None:
    """Run one target as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    until = started + 60 * options.minutes
    first, tried = options.first, 0
    while tried < options.cases and time.monotonic() < until:
        count = min(REPORT_EVERY, options.cases - tried)
        print(f"{options.target}: --seed {options.seed} --first {first + tried}", flush=True)
        numbers = range(first + tried, first + tried + count)
        tried += fuzz(TARGETS[options.target], options.seed, numbers, until)
    print(f"{options.target}: {tried:,} cases in {time.monotonic() - started:.0f} s, all well")


if __name__ == "__main__":
    main()
