"""The images of a job: files in a folder, or the rows of a table."""

import re
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from spark_vision.errors import TableError
from spark_vision.tables.location import quote

FILE_KEY = "path"
_GLOB = re.compile(r"[*?\[{]")


def read_images(spark: SparkSession, place: str) -> DataFrame:
    """Read image files, a Delta table, Parquet files or a table of the catalog.

    Args:
        spark: The session.
        place: A folder or glob of image files, whose rows are those of Spark's `binaryFile`: path,
            modificationTime, length, content; a folder or glob of Parquet files; the folder of a
            Delta table; or a table's name, which has no slash in it.

    Raises:
        TableError: Nothing is there.
    """
    is_path = "/" in place or _GLOB.search(place) or Path(place).exists()
    quoted = re.fullmatch(r"(?i:delta)\.`(.+)`", place)
    if quoted:
        return spark.read.format("delta").load(quoted[1])
    if not is_path:
        if not spark.catalog.tableExists(place):
            raise TableError(f"no table and no folder is called {place!r}")
        return spark.table(place)
    if not _GLOB.search(place) and _is_delta(spark, place):
        return spark.read.format("delta").load(place)
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(place)
    first = files.select(FILE_KEY).head()
    if first is None:
        raise TableError(f"no file is in {place}")
    if first[FILE_KEY].endswith(".parquet"):
        return spark.read.parquet(place)
    return files


def _is_delta(spark: SparkSession, path: str) -> bool:
    absolute = path if "://" in path or path.startswith("/") else str(Path(path).absolute())
    try:
        return spark.catalog.tableExists(f"delta.{quote(absolute)}")
    except AnalysisException:
        return False
