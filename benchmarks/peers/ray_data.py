"""Ray Data: a pool of two actors, each with the model; Pillow decodes within them."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import ray
from contender import CORE_COUNT, PillowModel, Work, answer_rounds, parquet_files
from ray.data import ActorPoolStrategy, SaveMode


class Embed:
    """The stateful transform of Ray Data."""

    def __init__(self, work: Work) -> None:
        self._model = PillowModel(work)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Embed a batch."""
        vectors = self._model.embed(rows["content"].to_pylist())
        values = [None if np.isnan(row[0]) else row for row in vectors]
        return pa.table({"id": rows["id"], "embedding": pa.array(values, pa.list_(pa.float32()))})


def prepare(work: Work) -> Callable[[], object]:
    # With only as many CPUs as the actors take, reading would wait for ever.
    ray.init(num_cpus=2 * CORE_COUNT, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False

    def run() -> None:
        rows = ray.data.read_parquet(parquet_files(work)).map_batches(
            Embed,
            fn_constructor_args=(work,),
            batch_format="pyarrow",
            batch_size=work.batch_size,
            compute=ActorPoolStrategy(size=CORE_COUNT),
        )
        rows.write_parquet(work.output, mode=SaveMode.OVERWRITE)

    return run


if __name__ == "__main__":
    answer_rounds(prepare)
