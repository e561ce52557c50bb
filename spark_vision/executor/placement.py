"""Where a model is computed: what `model_placement` returns for each row.

The driver imports this file for the type, so nothing here imports torch until rows are computed.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from spark_vision.errors import Status
from spark_vision.executor.task import Task
from spark_vision.operators import Operator

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


@dataclass(frozen=True)
class Placement:
    """Where and how a model was loaded, as reported by the process that holds it.

    Attributes:
        host: The host name.
        executor: The executor's JVM, as pid and start time; None outside Spark.
        device: Such as `cpu` or `cuda:1`, in the numbering of that process.
        server_pid: The id of that process.
        loaded_at: When loading finished, in seconds since 1970.
        load_seconds: How long loading took.
        dtype: The dtype of the computation.
        fingerprint: The checkpoint's fingerprint, as tables store it.
    """

    host: str
    executor: str | None
    device: str
    server_pid: int
    loaded_at: float
    load_seconds: float
    dtype: str
    fingerprint: str


def place_rows(
    batches: Iterable[pa.Array | tuple[pa.Array, ...]], operator: Operator, task: Task
) -> Iterator[pa.Array]:
    """Compute every row, and yield the placement of the model that computed it.

    Args:
        batches: The operator's input.
        operator: What to compute.
        task: Its resources.

    Yields:
        Structs of `PLACEMENT_TYPE` in the order of the input, null for failed rows.

    Raises:
        SparkVisionError: The operator cannot run here.
    """
    from spark_vision.executor.columns import compute_columns
    from spark_vision.executor.devices import prepare_device
    from spark_vision.executor.model_access import open_checkpoint, reach_model

    # A failed row has no placement, whatever the operator's failure options are.
    operator = dataclasses.replace(operator, on_error="null", max_failure_rate=None)
    reached = None
    for (computed,) in compute_columns(batches, [operator], task, with_status=True):
        is_placed = pc.equal(computed.field("status"), Status.OK.value)
        if not pc.any(is_placed).as_py():
            yield pa.nulls(len(computed), PLACEMENT_TYPE)
            continue
        if reached is None:
            # The model that computed the rows: the worker still has it.
            checkpoint, _ = open_checkpoint(operator, task)
            reached = reach_model(checkpoint, operator, prepare_device(operator, task), task)
        placed = dataclasses.asdict(reached.placement())
        placed["loaded_at"] = int(placed["loaded_at"] * 1_000_000)
        row = pa.array([placed], PLACEMENT_TYPE)
        yield row.take(pc.if_else(is_placed, 0, pa.scalar(None, pa.int64())))
