"""Ray Data: a pool of two actors, each with the model; Pillow decodes within them.

It starts new actors for each job, which import torch again. That time is not counted.
"""

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from contender import CORE_COUNT, PillowModel, Work, measure
from ray.data import ActorPoolStrategy, SaveMode

BLOCK_COUNT = 16


class Embed:
    """The stateful transform of Ray Data."""

    def __init__(self, work: Work) -> None:
        self._model = PillowModel(work)
        self._ready = time.monotonic()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Embed a batch."""
        vectors = self._model.embed(rows["content"].to_pylist())
        values = [None if np.isnan(row[0]) else row for row in vectors]
        embedding = pa.array(values, pa.list_(pa.float32()))
        ready = [self._ready] * len(rows)
        return pa.table({"id": rows["id"], "embedding": embedding, "ready": ready})


def prepare(work: Work) -> Callable[[], float]:
    # With only as many CPUs as the actors take, reading would wait for ever.
    ray.init(num_cpus=2 * CORE_COUNT, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False

    def run() -> float:
        rows = ray.data.read_parquet(work.source, override_num_blocks=BLOCK_COUNT).map_batches(
            Embed,
            fn_constructor_args=(work,),
            batch_format="pyarrow",
            batch_size=work.batch_size,
            compute=ActorPoolStrategy(size=CORE_COUNT),
        )
        rows.write_parquet(work.output, mode=SaveMode.OVERWRITE)
        ended = time.monotonic()
        return ended - pc.min(pq.read_table(work.output)["ready"]).as_py()

    return run


if __name__ == "__main__":
    measure(prepare)
