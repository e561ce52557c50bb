"""What a run that was killed left behind: complete waves are committed, all else is removed."""

import logging

from pyspark.sql import SparkSession

from spark_vision.errors import CommitConflictError
from spark_vision.tables.commit import commit_wave
from spark_vision.tables.hadoop_folder import HadoopFolder
from spark_vision.tables.identity import filled_columns
from spark_vision.tables.location import TableDetail, TableLocation
from spark_vision.tables.stage import left_behind, staged_waves

logger = logging.getLogger(__name__)


def recover_waves(
    spark: SparkSession, location: TableLocation, detail: TableDetail, root: HadoopFolder
) -> int:
    """Bring staged waves into the table that their runs could not, and clean up after them.

    A wave that was committed before its run ended changes nothing. One by a model that is no longer
    the table's is dropped.

    Args:
        spark: A classic session.
        location: The table.
        detail: What is known of it.
        root: Its stage folder.

    Returns:
        Rows of the waves that were committed here.
    """
    recovered = 0
    filled = filled_columns(detail.properties)
    for folder in left_behind(root):
        for wave, path in staged_waves(folder):
            if all(detail.properties.get(name) == said for name, said in wave.identity.items()):
                logger.info("recover: commit %d rows of a run that was killed", wave.count)
                try:
                    commit_wave(location, wave, spark.read.parquet(path), filled)
                except CommitConflictError:
                    raise
                except Exception:
                    # It would fail every run to come; its rows are computed again instead.
                    logger.warning("a wave of %s was dropped", location.given, exc_info=True)
                    continue
                recovered += wave.count
        folder.delete()
    root.delete_if_empty()
    return recovered
