"""Generated JPEG photographs for benchmarks: distinct, seeded, with a photograph's detail."""

import io
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 500, 375


def photograph(
    seed: int, width: int = WIDTH, height: int = HEIGHT, grain: float = 0
) -> Image.Image:
    """Draw clouds of colour at four scales, whose spectrum falls off as a photograph's does.

    Grain is noise of so many levels, which a large photograph needs to take the bytes of a real
    one.
    """
    random = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((4, 90), (12, 45), (40, 20), (130, 7)):
        rows = max(2, round(cells * height / width))
        coarse = random.integers(0, 256, (rows, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        layers += (np.asarray(layer, np.float32) / 127.5 - 1) * weight
    if grain:
        layers += random.normal(0, grain, layers.shape).astype(np.float32)
    pixels = np.clip(layers + 128, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.SHARPEN)


def jpeg_bytes(
    seed: int, width: int = WIDTH, height: int = HEIGHT, quality: int = 80, grain: float = 0
) -> bytes:
    """Encode one photograph; at the default size and quality it takes about 21 KB."""
    buffer = io.BytesIO()
    photograph(seed, width, height, grain).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_parquet(folder: Path, count: int, file_count: int = 16, **photograph: float) -> None:
    """Write `count` distinct photographs as (id, content) rows, unless the folder has them.

    Args:
        folder: Where to.
        count: Number of rows.
        file_count: Number of Parquet files.
        **photograph: Arguments of `jpeg_bytes`.
    """
    if (folder / "_SUCCESS").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        encode = partial(jpeg_bytes, **photograph)
        contents = list(pool.map(encode, range(count), chunksize=max(1, count // 128)))
    for part, ids in enumerate(np.array_split(np.arange(count), file_count)):
        table = pa.table({"id": pa.array(ids), "content": [contents[row] for row in ids]})
        pq.write_table(table, folder / f"part-{part:03}.parquet", compression="none")
    (folder / "_SUCCESS").touch()
