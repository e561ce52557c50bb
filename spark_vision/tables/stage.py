"""Where a wave waits between the model and the table: Parquet files that outlive the driver.

A run has a folder of its own, `_spark_vision/<run>` in the table's folder, which Delta and its
VACUUM leave alone. A wave's rows are in `wave-<n>`; once they are complete, `wave-<n>.json` says
what they are. While its run lives, the file `alive` is written again every two seconds: a folder
where that stands still was left by a run that was killed.
"""

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from pyspark.sql import DataFrame, SparkSession

from spark_vision.tables.commit import StagedWave
from spark_vision.tables.hadoop_folder import HadoopFolder

logger = logging.getLogger(__name__)

STAGE_FOLDER = "_spark_vision"
BEAT_SECONDS = 2.0
DEAD_SECONDS = 10.0
_ALIVE = "alive"


class Stage(Protocol):
    """Keeps a wave's rows until they are in the table."""

    def write(self, rows: DataFrame) -> DataFrame:
        """Compute the rows, once, and give what was kept of them."""
        ...

    def finish(self, wave: StagedWave) -> None:
        """Write down that the rows are complete, and what they are."""
        ...

    def drop(self) -> None:
        """Forget the rows, once they are in the table."""
        ...

    def kept_alive(self) -> AbstractContextManager[None]:
        """Let other runs see that this one lives, from its first wave to its end."""
        ...

    def end(self) -> None:
        """Leave nothing behind."""
        ...


class RunFolder:
    """The stage of one run.

    Args:
        root: The table's stage folder.
    """

    def __init__(self, spark: SparkSession, root: HadoopFolder) -> None:
        self._spark = spark
        self._root = root
        self._folder = root.folder(uuid.uuid4().hex)
        self._wave = 0

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Let other runs see that this one lives, from its first wave to its end."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_SECONDS):
                try:
                    self._folder.touch(_ALIVE)
                except Exception:
                    logger.warning("the stage's sign of life could not be written", exc_info=True)

        self._folder.touch(_ALIVE)
        thread = threading.Thread(target=beat, name="spark-vision-stage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def write(self, rows: DataFrame) -> DataFrame:
        """Compute the rows into Parquet files, and read those."""
        path = f"{self._folder.path}/wave-{self._wave}"
        # It is written once and read once: smaller is faster.
        rows.write.option("compression", "zstd").parquet(path)
        return self._spark.read.schema(rows.schema).parquet(path)

    def finish(self, wave: StagedWave) -> None:
        """Write down that the rows are complete, and what they are."""
        self._folder.write(f"wave-{self._wave}.json", json.dumps(wave.to_json()))

    def drop(self) -> None:
        """Remove the rows, the mark first: without it they are no longer a wave."""
        self._folder.delete_file(f"wave-{self._wave}.json")
        self._folder.folder(f"wave-{self._wave}").delete()
        self._wave += 1

    def end(self) -> None:
        """Remove the run's folder."""
        self._folder.delete()
        self._root.delete_if_empty()


class CheckpointStage:
    """The stage of a Spark Connect session, which has no file system of its own.

    The rows are on the executors' disks: a run that is killed loses the wave in flight.
    """

    def __init__(self) -> None:
        self._rows: DataFrame | None = None

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Nothing is left behind that others could find."""
        yield

    def write(self, rows: DataFrame) -> DataFrame:
        """Compute the rows, and keep them where they were computed."""
        self._rows = rows.localCheckpoint()
        return self._rows

    def finish(self, wave: StagedWave) -> None:
        """Nothing can be picked up later."""

    def drop(self) -> None:
        """Forget the rows."""
        self._rows = None

    def end(self) -> None:
        """Nothing is left."""


def left_behind(root: HadoopFolder) -> list[HadoopFolder]:
    """Find the folders of runs that no longer live; waits ten seconds where there is any folder."""
    runs = {name: root.folder(name) for name in root.names()}
    if not runs:
        return []
    before = {name: folder.modified(_ALIVE) for name, folder in runs.items()}
    threading.Event().wait(DEAD_SECONDS)
    return [folder for name, folder in runs.items() if folder.modified(_ALIVE) == before[name]]


def staged_waves(folder: HadoopFolder) -> Iterator[tuple[StagedWave, str]]:
    """Give the complete waves of a run, and where their rows are."""
    for name in folder.names():
        if name.startswith("wave-") and name.endswith(".json"):
            try:
                text = folder.read(name)
                if text is None:
                    continue
                wave = StagedWave.from_json(json.loads(text))
            except (ValueError, TypeError, RecursionError):
                # Damaged, or of another version: its rows are computed again.
                logger.warning("the wave %s/%s was dropped", folder.path, name, exc_info=True)
                continue
            yield wave, f"{folder.path}/{name.removesuffix('.json')}"
