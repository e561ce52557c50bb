"""What a run that was killed left behind: complete waves are committed, all else is removed."""

import logging

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from spark_vision.errors import CommitConflictError, TableError
from spark_vision.tables.commit import commit_wave
from spark_vision.tables.hadoop_folder import HadoopFolder
from spark_vision.tables.location import TableLocation
from spark_vision.tables.stage import left_behind, staged_waves

logger = logging.getLogger(__name__)


def recover_waves(spark: SparkSession, location: TableLocation, root: HadoopFolder) -> int:
    """Bring staged waves into the table that their runs could not, and clean up after them.

    A wave that was committed before its run ended changes nothing. One by a model that is no longer
    the table's, or whose columns no longer fit, is dropped: it would fail every run to come, and
    its rows are computed again instead. Where the storage or the executors fail it stays, and the
    error is this run's. No wave completes a transaction here: rows that were changed since it was
    staged stay as they are, and the transaction's own run looks at them again.

    Args:
        spark: A classic session.
        location: The table.
        root: Its stage folder.

    Returns:
        Rows that came into the table here.
    """
    recovered = 0
    for folder in left_behind(root):
        for wave, path in staged_waves(folder):
            logger.info("recover: commit %d rows of a run that was killed", wave.count)
            try:
                recovered += commit_wave(location, wave, spark.read.parquet(path))
            except CommitConflictError:
                raise
            except (AnalysisException, TableError):
                logger.warning("a wave of %s was dropped", location.given, exc_info=True)
        folder.delete()
    root.delete_if_empty()
    return recovered
