"""What bad rows cost: 100,000 images by path, none bad, then every tenth bad in one of many ways.

The rows stand in the same places in both runs, so that good rows can be compared one by one. Bad
rows are damaged and monstrous files, files of other kinds, addresses that lead elsewhere, and a
server on 127.0.0.1 that answers badly or not at all. Checked are: a row for each row, the vectors
of good rows within 1e-5, and the statuses. Printed are: the ratio of the times, round by round; the
resident memory of the Python processes as the first and as the last 10,000 rows are done; and what
became of each kind.

    .venv/bin/python benchmarks/hostile_rows.py [--rows 100000] [--rounds 3]
"""

import argparse
import base64
import io
import statistics
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyspark.sql import SparkSession

from photographs import jpeg_bytes
from random_checkpoints import write_feather_clip
from spark_vision import ClipImageEmbedding, ImageLimits, configure, embed_image

CORE_COUNT = 2
IMAGE_SIZE = 112
FILE_COUNT = 1024
BAD_SHARE = 10
SILENT_SHARE = 40
"""One in so many bad rows waits for its whole time limit."""


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))
        + kind
        + payload
        + struct.pack(">I", zlib.crc32(kind + payload))
    )


def png(width: int, height: int, depth: int, color_type: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def tiff(tags: list[tuple[int, int, int, int]]) -> bytes:
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(64)


def bad_files() -> dict[str, bytes]:
    """Make a file of each kind that cannot or must not be decoded."""
    photograph = jpeg_bytes(0)
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole_png, whole_gif = encode(small, "PNG"), encode(small, "GIF")
    progressive = encode(small, "JPEG", progressive=True)
    # A scan begins with 0xFFDA and its length; the rest of it is left out.
    scans = progressive.index(b"\xff\xda")
    scan = progressive[scans : progressive.index(b"\xff", scans + 12)]
    vast_tile = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    vast_tile += [(277, 3, 1, 1), (322, 4, 1, 46000), (323, 4, 1, 46000), (324, 4, 1, 8)]
    vast_tile += [(325, 4, 1, 64)]
    many_tags = [(40000 + number, 3, 1, 1) for number in range(20_000)]
    run_length = b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078)
    run_length += struct.pack("<IiiHHIIiiII", 40, 30000, 2900, 1, 8, 1, 4, 0, 0, 256, 0)
    return {
        "empty": b"",
        "half a JPEG": photograph[: len(photograph) // 2],
        "zeros in a JPEG's header": photograph[:4] + bytes(200) + photograph[204:],
        "1 MB of stray bytes in a JPEG": photograph[:20] + b"\x01" * 2**20 + photograph[20:],
        "a JPEG of 3,000 scans": progressive[:scans] + scan * 3000 + b"\xff\xd9",
        "JPEG of 65,500² pixels": photograph.replace(
            struct.pack(">HH", 375, 500), struct.pack(">HH", 65500, 65500), 1
        ),
        "damaged PNG": whole_png[:60] + bytes(40) + whole_png[100:],
        "PNG of 30,000² pixels": png(30_000, 30_000, 8, 2, bytes(100)),
        "16-bit PNG bomb": png(9_400, 9_400, 16, 6, bytes(9_400 * 8 + 1) * 200),
        "half a GIF": whole_gif[: len(whole_gif) // 2],
        "TIFF with a vast tile": tiff(vast_tile),
        "TIFF of 20,000 tags": tiff(many_tags),
        "BMP of run lengths": run_length + bytes(1024) + b"\0\0\0\1",
        "WebP cut short": encode(small, "WEBP", lossless=True)[:200],
        "AVIF without pixels": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
        "an HTML page": b"<!doctype html><p>not found" * 20,
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
        "a ZIP": b"PK\3\4" + bytes(500),
        "noise": np.random.default_rng(1).bytes(20_000),
        "PSD": b"8BPS\0\1" + bytes(100),
    }


def bad_addresses(server: str, silent: str, outside: str) -> dict[str, str]:
    """Write an address of each kind that leads nowhere, or where no string may lead."""
    nested = "reference://::zip://x::"
    return {
        "no such file": "/data/no-such-folder/image.jpg",
        "a file outside": outside,
        "the kernel's files": "/proc/self/environ",
        "a device": "/dev/zero",
        "a private address": "http://127.0.0.2/image.jpg",
        "a private address as a number": "http://2130706434/image.jpg",
        "a private address in IPv6": "http://[::ffff:127.0.0.2]/image.jpg",
        "a chain": f"{nested}file:///etc/passwd",
        "an archive": "zip://image.jpg::file:///dev/zero",
        "another scheme": "ftp://127.0.0.1/image.jpg",
        "a bucket": "s3://bucket/image.jpg",
        "an invalid URL": "http://[",
        "not found": f"{server}/404",
        "a server's error": f"{server}/500",
        "a redirect to a private address": f"{server}/elsewhere",
        "an endless answer": f"{server}/endless",
        "half an answer": f"{server}/half",
        "not base64": "data:image/png;base64,@@@@",
        "base64 of noise": "data:;base64," + base64.b64encode(bytes(3000)).decode(),
        "a long text": "/" + "x" * 100_000,
        "no text": " ",
        "silence": f"{silent}/",
    }


class _BadAnswers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        if self.path == "/endless":
            self._begin(200, "Content-Type", "image/jpeg")
            try:
                while True:
                    self.wfile.write(bytes(2**16))
            except OSError:
                return
        elif self.path == "/half":
            self._begin(200, "Content-Length", "10000")
            self.wfile.write(bytes(100))
        elif self.path == "/elsewhere":
            self._begin(302, "Location", "http://127.0.0.2/")
        else:
            self._begin(int(self.path[1:]), "Content-Length", "0")

    def _begin(self, status: int, name: str, value: str) -> None:
        self.send_response(status)
        self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def bad_servers() -> Iterator[tuple[str, str]]:
    """Run a server that answers badly, and one that accepts and says nothing."""
    import socket

    silent = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _BadAnswers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        ports = server.server_address[1], silent.getsockname()[1]
        yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    finally:
        server.shutdown()
        server.server_close()
        silent.close()


class Memory:
    """Resident bytes of the Python processes below this one, watched while the block runs."""

    def __enter__(self) -> "Memory":
        self.samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    if "python" in process.name():
                        total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.samples.append((time.perf_counter(), total))

    def share(self, first: float, last: float) -> float:
        """Return the median of the samples between two shares of the time, in MiB."""
        started, ended = self.samples[0][0], self.samples[-1][0]
        chosen = [
            size
            for moment, size in self.samples
            if first <= (moment - started) / (ended - started) <= last
        ]
        return statistics.median(chosen) / 2**20


def write_rows(folder: Path, addresses: list[str]) -> None:
    """Write the addresses, in their order, as several files of (id, image)."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, ids in enumerate(np.array_split(np.arange(len(addresses)), 2 * CORE_COUNT)):
        table = pa.table({"id": pa.array(ids), "image": [addresses[row] for row in ids]})
        pq.write_table(table, folder / f"part-{part:03}.parquet")


def read_rows(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Return vectors (NaN where there is none) and statuses, by id."""
    table = pq.read_table(folder).sort_by("id")
    assert table["id"].to_pylist() == list(range(len(table))), "a row for each row"
    result = table["result"].combine_chunks()
    statuses = result.field("status").to_pylist()
    lists = result.field("embedding")
    width = len(next(vector for vector in lists.to_pylist() if vector is not None))
    vectors = np.full((len(table), width), np.nan, np.float32)
    vectors[~np.asarray(lists.is_null())] = lists.flatten().to_numpy().reshape(-1, width)
    return vectors, statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, bad_servers() as (server, silent):
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        good = [str(images / f"{seed}.jpg") for seed in range(FILE_COUNT)]
        with ProcessPoolExecutor() as pool:
            contents = pool.map(jpeg_bytes, range(FILE_COUNT), chunksize=64)
            for path, content in zip(good, contents, strict=True):
                Path(path).write_bytes(content)
        outside = folder / "outside.jpg"
        outside.write_bytes(jpeg_bytes(0))
        bad: dict[str, str] = {}
        for number, (kind, content) in enumerate(bad_files().items()):
            bad[kind] = str(images / f"bad-{number}")
            Path(bad[kind]).write_bytes(content)
        bad |= bad_addresses(server, silent, str(outside))

        chosen = np.random.default_rng(0).integers(0, FILE_COUNT, arguments.rows)
        clean = [good[index] for index in chosen]
        mixed, kinds = list(clean), ["good"] * arguments.rows
        names = [kind for kind in bad if kind != "silence"]
        for number, row in enumerate(range(BAD_SHARE // 2, arguments.rows, BAD_SHARE)):
            kinds[row] = "silence" if number % SILENT_SHARE == 0 else names[number % len(names)]
            mixed[row] = bad[kinds[row]]
        write_rows(folder / "clean", clean)
        write_rows(folder / "mixed", mixed)

        operator = ClipImageEmbedding(
            model_name=str(write_feather_clip(folder / "clip", IMAGE_SIZE)),
            batch_size=128,
            allow_paths=(str(images),),
            allow_hosts=("127.0.0.1",),
            limits=ImageLimits(fetch_seconds=1.0, max_bytes=10 * 2**20),
        )
        builder = SparkSession.builder.master(f"local[{CORE_COUNT}]")
        spark = configure(builder.config("spark.ui.enabled", False)).getOrCreate()

        def run(which: str) -> float:
            started = time.perf_counter()
            rows = spark.read.parquet(str(folder / which))
            result = embed_image("image", operator, with_status=True).alias("result")
            rows.select("id", result).write.mode("overwrite").parquet(str(folder / f"{which}-done"))
            return time.perf_counter() - started

        def measure(work: Callable[[], float]) -> tuple[float, float, float]:
            with Memory() as memory:
                seconds = work()
            return seconds, memory.share(0.05, 0.15), memory.share(0.9, 1.0)

        run("clean")
        ratios = []
        for number in range(arguments.rounds):
            clean_seconds, *_ = measure(lambda: run("clean"))
            mixed_seconds, first, last = measure(lambda: run("mixed"))
            ratios.append(mixed_seconds / clean_seconds)
            print(
                f"round {number + 1}: clean {clean_seconds:.1f} s, mixed {mixed_seconds:.1f} s, "
                f"ratio {ratios[-1]:.2f}; resident {first:,.0f} MiB early, {last:,.0f} MiB late",
                flush=True,
            )
        vectors, statuses = read_rows(folder / "clean-done")
        assert set(statuses) == {"ok"}, Counter(statuses)
        found, found_statuses = read_rows(folder / "mixed-done")
        spark.stop()

    is_good = np.array([kind == "good" for kind in kinds])
    assert {found_statuses[row] for row in np.flatnonzero(is_good)} == {"ok"}
    difference = np.abs(vectors[is_good] - found[is_good]).max()
    assert difference <= 1e-5, difference
    print(f"good rows: largest difference {difference:.1e}")
    print(f"mixed / clean: median {statistics.median(ratios):.2f}, {arguments.rows:,} rows")
    by_kind: dict[str, Counter[str]] = {}
    for kind, status in zip(kinds, found_statuses, strict=True):
        by_kind.setdefault(kind, Counter())[status] += 1
    for kind, counts in by_kind.items():
        print(f"{kind:>32}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))


if __name__ == "__main__":
    main()
