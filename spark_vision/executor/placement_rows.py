"""The body of `model_placement`: rows are computed, and what computed them says where it is."""

import dataclasses
from collections.abc import Iterable, Iterator

import pyarrow as pa

from spark_vision.errors import RowFailure
from spark_vision.executor.embedding import open_images, open_texts
from spark_vision.executor.placement import Placement
from spark_vision.executor.task import Task
from spark_vision.operators import ClipImageEmbedding, ClipTextEmbedding, ImageViTEmbedding

PLACEMENT_TYPE = pa.struct(
    {
        "host": pa.string(),
        "executor": pa.string(),
        "device": pa.string(),
        "server_pid": pa.int64(),
        "loaded_at": pa.timestamp("us", tz="UTC"),
        "load_seconds": pa.float64(),
        "dtype": pa.string(),
        "fingerprint": pa.string(),
    }
)


def place_rows(
    arrays: Iterable[pa.Array],
    operator: ImageViTEmbedding | ClipImageEmbedding | ClipTextEmbedding,
    task: Task,
) -> Iterator[pa.Array]:
    """Compute every row, and give back the placement of the model that computed it.

    Arguments and errors are those of `embedding.embed_images`.

    Yields:
        Structs of `PLACEMENT_TYPE`, null for rows that reached no model, in the input's order.
    """
    if isinstance(operator, ClipTextEmbedding):
        opened = open_texts(arrays, operator, task)
    else:
        opened = open_images(arrays, operator, task)
    for outcomes in opened.outcomes:
        computed = any(not isinstance(outcome, RowFailure) for outcome in outcomes)
        placed = _to_row(opened.model.placement()) if computed else None
        rows = [None if isinstance(outcome, RowFailure) else placed for outcome in outcomes]
        yield pa.array(rows, PLACEMENT_TYPE)


def _to_row(placement: Placement) -> dict[str, object]:
    return {
        **dataclasses.asdict(placement),
        "loaded_at": int(placement.loaded_at * 1_000_000),
    }
