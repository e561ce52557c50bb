"""Compares this package with other ways to embed images: the same rows, model, cores and output.

The contenders take turns. Each is a process, which embeds all rows once to warm up and once to be
measured. Their vectors are compared with this package's.

    .venv-peers/bin/python benchmarks/peers/compare.py [--model vit] [--width 4000 --height 3000]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from photographs import write_parquet  # noqa: E402
from random_checkpoints import write_feather_clip, write_vit_base  # noqa: E402

OURS = "spark_vision_column"
CONTENDERS = [OURS, "spark_iterator_udf", "spark_predict_batch_udf", "daft_class", "ray_data"]
BROKEN_BYTES = 100


def seconds_of(name: str, options: dict[str, object]) -> float:
    """Run a contender, alone on the machine."""
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, HERE / f"{name}.py", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        # Python workers and actors import these files too.
        env=os.environ | {"PYTHONPATH": str(HERE), "PYSPARK_PYTHON": sys.executable},
    )
    return float(done.stdout.splitlines()[-1])


def write_source(arguments: argparse.Namespace) -> Path:
    """Write the rows; of broken ones every tenth is only the start of a file."""
    shape = {name: getattr(arguments, name) for name in ("width", "height", "quality", "grain")}
    name = "-".join(f"{value:g}" for value in (*shape.values(), arguments.rows))
    distinct = arguments.data / name
    write_parquet(distinct, arguments.rows, file_count=4, **shape)
    source = arguments.data / f"{name}-source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for path in distinct.glob("*.parquet"):
        rows = pq.read_table(path)
        if arguments.broken:
            contents = [
                content[:BROKEN_BYTES] if row % 10 == 0 else content
                for row, content in zip(
                    *(rows[name].to_pylist() for name in rows.column_names), strict=True
                )
            ]
            rows = rows.set_column(1, "content", pa.array(contents))
        for number in range(arguments.repeat):
            pq.write_table(rows, source / f"{path.stem}-{number}.parquet", compression="none")
    return source


def read_vectors(folder: Path) -> np.ndarray:
    """Read the vectors in the order of their ids, once each; those of broken images are NaN."""
    rows = pq.read_table(folder)
    vectors = dict(zip(rows["id"].to_pylist(), rows["embedding"].to_pylist(), strict=True))
    length = next(len(vector) for vector in vectors.values() if vector is not None)
    missing = [np.nan] * length
    return np.array([missing if vectors[row] is None else vectors[row] for row in sorted(vectors)])


def least_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the least cosine between vectors of the same image, less the mean vector."""
    mean = np.nanmean(ours, axis=0)
    ours, theirs = ours - mean, theirs - mean
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(np.nanmin((ours * theirs).sum(axis=1) / lengths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="feather", choices=["feather", "vit"])
    parser.add_argument("--image-size", type=int, default=224, help="pixels of the model's input")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--quality", type=int, default=80, help="of the JPEG files")
    parser.add_argument("--grain", type=float, default=0, help="noise, in levels")
    parser.add_argument("--rows", type=int, default=4096, help="distinct photographs")
    parser.add_argument("--repeat", type=int, default=2, help="times each is read per round")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--broken", action="store_true", help="break every tenth photograph")
    parser.add_argument("--rounds", type=int, default=5, help="alternated rounds")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    arguments = parser.parse_args()

    size = arguments.image_size
    checkpoint = arguments.data / f"{arguments.model}-{size}"
    if arguments.model == "vit":
        write_vit_base(checkpoint)
    else:
        write_feather_clip(checkpoint, size)
    options = {
        "source": write_source(arguments),
        "checkpoint": checkpoint,
        "image-size": size,
        "batch-size": arguments.batch_size,
    }
    outputs = {name: arguments.data / f"vectors-{name}" for name in arguments.contenders}
    rates: dict[str, list[float]] = {name: [] for name in outputs}
    for _ in range(arguments.rounds):
        for name, output in outputs.items():
            seconds = seconds_of(name, {**options, "output": output})
            rates[name].append(arguments.rows * arguments.repeat / seconds)
            print(f"{name}: {rates[name][-1]:,.1f} rows/s", flush=True)

    ours = read_vectors(outputs[OURS])
    print("| contender | rows/s | ours / contender, round by round | least cosine | broken |")
    print("|---|---|---|---|---|")
    for name, values in rates.items():
        ratios = [our / their for our, their in zip(rates[OURS], values, strict=True)]
        vectors = read_vectors(outputs[name])
        cells = (
            name,
            f"{statistics.median(values):,.1f}",
            f"{statistics.median(ratios):.2f} ({', '.join(f'{each:.2f}' for each in ratios)})",
            f"{least_cosine(ours, vectors):.4f}",
            str(np.isnan(vectors).any(axis=1).sum()),
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
