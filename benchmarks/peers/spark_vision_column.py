"""This package: `embed_image` as a column of Spark."""

import json
from collections.abc import Callable
from pathlib import Path

from contender import Work, measure
from spark_job import write_column

from spark_vision import ClipImageEmbedding, ImageViTEmbedding, embed_image


def prepare(work: Work, *, fast_decode: bool = False) -> Callable[[], None]:
    model_type = json.loads((Path(work.checkpoint) / "config.json").read_text())["model_type"]
    kind = ClipImageEmbedding if model_type == "clip" else ImageViTEmbedding
    operator = kind(
        model_name=work.checkpoint,
        batch_size=work.batch_size,
        model_sharing="worker",
        fast_decode=fast_decode,
    )
    return write_column(work, lambda content: embed_image(content, operator))


if __name__ == "__main__":
    measure(prepare)
