"""What exact search costs beside its limit: the same Parquet read by pyarrow, and a matrix product.

    .venv/bin/python benchmarks/exact_search.py [--rows 1000000] [--dimension 512] [--rounds 3]

Both find the 16 nearest rows of 1 and of 100 queries, and must find the same ones.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyspark.sql import SparkSession

from spark_vision import configure, search_images

CORE_COUNT = 2
FILE_ROWS = 100_000
K = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    folder = Path(tempfile.mkdtemp(prefix="exact-search-", dir=arguments.folder))
    try:
        write_vectors(folder, arguments.rows, arguments.dimension)
        compare(folder, arguments)
    finally:
        shutil.rmtree(folder)


def write_vectors(folder: Path, rows: int, dimension: int) -> None:
    """Write unit vectors with an id, as a Delta table's files have them."""
    random = np.random.default_rng(0)
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        vectors = random.standard_normal((count, dimension), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        offsets = np.arange(count + 1, dtype=np.int32) * dimension
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel()))
        table = pa.table({"id": pa.array(range(start, start + count)), "embedding": column})
        pq.write_table(table, folder / f"{start:09d}.parquet")


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    spark = start_session()
    rows = spark.read.parquet(str(folder))
    random = np.random.default_rng(1)
    for count in (1, 100):
        queries = random.standard_normal((count, arguments.dimension), np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        search_by_spark(rows.limit(1000), queries)
        ours, limits = [], []
        for _ in range(arguments.rounds):
            seconds, found = timed(search_by_spark, rows, queries)
            ours.append(seconds)
            seconds, wanted = timed(search_by_torch, folder, queries)
            limits.append(seconds)
            same = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, wanted, strict=True)])
        ratios = [a / b for a, b in zip(ours, limits, strict=True)]
        print(
            f"{count} queries: {statistics.median(ours):.1f} s, limit "
            f"{statistics.median(limits):.1f} s, ratio {statistics.median(ratios):.2f} "
            f"({', '.join(f'{each:.2f}' for each in ratios)}); same rows {same:.4f}"
        )
    spark.stop()


def search_by_spark(rows, queries: np.ndarray) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in queries]
    for row in search_images(rows, "embedding", queries, k=K, keys=["id"]).collect():
        found[row["query"]].append(row["id"])
    return found


def search_by_torch(folder: Path, queries: np.ndarray) -> list[list[int]]:
    asked = torch.from_numpy(queries)
    scores, ids = [], []
    for file in sorted(folder.iterdir()):
        table = pq.read_table(file)
        vectors = table["embedding"].combine_chunks().flatten().to_numpy()
        best = (asked @ torch.from_numpy(vectors).reshape(-1, queries.shape[1]).T).topk(K)
        scores.append(best.values)
        ids.append(torch.from_numpy(table["id"].to_numpy().copy())[best.indices])
    places = torch.cat(scores, 1).topk(K).indices
    return torch.cat(ids, 1).gather(1, places).tolist()


def timed(work, *arguments):
    started = time.monotonic()
    result = work(*arguments)
    return time.monotonic() - started, result


def start_session() -> SparkSession:
    builder = (
        SparkSession.builder.master(f"local[{CORE_COUNT}]")
        .config("spark.driver.memory", "4g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.log.level", "ERROR")
    )
    return configure(builder).getOrCreate()


if __name__ == "__main__":
    main()
