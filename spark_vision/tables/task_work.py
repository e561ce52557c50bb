"""What the tasks of a write spent: seconds by step, and counts, from the executors' own sums."""

from collections.abc import Mapping
from dataclasses import dataclass

from spark_vision.executor.spending import BUSY_PREFIX

_STEPS = ("read", "fetch", "decode", "waiting", "model", "write")


@dataclass(frozen=True)
class TaskWork:
    """What the tasks of a write spent, without attempts that failed.

    Seconds are sums over threads and tasks that run at the same time: compare them with each
    other, not with the elapsed time.

    Attributes:
        read_seconds: Waiting for Spark to pass rows.
        fetch_seconds: Fetching images from URLs and paths.
        decode_seconds: Decoding, resizing and otherwise preparing images.
        waiting_seconds: Waiting for a model server, beyond its own computation.
        model_seconds: Computation of the models.
        busy_seconds: As `model_seconds`, but calls that overlap in a process count once.
        write_seconds: Waiting for Spark to take rows, which it writes to the table's files.
        process_count: Number of processes that computed with a model.
        model_loads: How often a model was loaded.
        repeated_calls: Calls that were repeated because a model server had ended.
        rows_per_forward: Mean number of rows that a model server computed together; None where it
            computed no vectors.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> result = write_vision_columns(
        ...     photos, "/data/timed_vectors", keys=["path"], columns={"embedding": dino}
        ... )
        >>> work: TaskWork | None = result.work
        >>> if work is not None and work.model_seconds < work.decode_seconds:
        ...     print("the model waits for images")
    """

    read_seconds: float
    fetch_seconds: float
    decode_seconds: float
    waiting_seconds: float
    model_seconds: float
    busy_seconds: float
    write_seconds: float
    process_count: int
    model_loads: int
    repeated_calls: int
    rows_per_forward: float | None


def work_between(before: Mapping[str, int], after: Mapping[str, int]) -> TaskWork:
    """Return what was spent between two states of a sum, by the names of `executor.spending`."""
    spent = {name: amount - before.get(name, 0) for name, amount in after.items()}
    forwards = spent.get("forwards", 0)
    busy = [amount for name, amount in spent.items() if name.startswith(BUSY_PREFIX) and amount]
    return TaskWork(
        **{f"{step}_seconds": spent.get(f"{step}_ns", 0) / 1e9 for step in _STEPS},
        busy_seconds=sum(busy) / 1e9,
        process_count=len(busy),
        model_loads=spent.get("model_loads", 0),
        repeated_calls=spent.get("repeated_calls", 0),
        rows_per_forward=spent["forward_rows"] / forwards if forwards else None,
    )
