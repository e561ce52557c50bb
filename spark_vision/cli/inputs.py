"""Reads the images of a job: files or a table, as a batch or as a stream."""

import re
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from spark_vision.errors import TableError
from spark_vision.tables.location import absolute_path, check_place, quote, quoted_path

FILE_KEY = "path"
_GLOB = re.compile(r"[*?\[{]")
_FILES = f"{FILE_KEY} string, modificationTime timestamp_ltz, length bigint, content binary"


def read_images(spark: SparkSession, place: str) -> DataFrame:
    """Read image files, a Delta table, Parquet files or a table of the catalog.

    Args:
        spark: The session.
        place: A folder or glob of image files, which gives the columns of Spark's `binaryFile`:
            path, modificationTime, length, content; a folder or glob of Parquet files; the folder
            of a Delta table; or a table name, which contains no slash.

    Raises:
        TableError: There is no such file or table.
    """
    table = _table_at(spark, place)
    if table is not None:
        return spark.table(table)
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(place)
    first = files.select(FILE_KEY).head()
    if first is None:
        raise TableError(f"there are no files in {place}")
    if first[FILE_KEY].endswith(".parquet"):
        return spark.read.parquet(place)
    return files


def stream_images(spark: SparkSession, place: str, max_files: int) -> DataFrame:
    """Read image files or a Delta table as a stream.

    Args:
        spark: The session.
        place: A folder or glob of image files, the folder of a Delta table, or a table name.
        max_files: Maximum number of files per batch.

    Returns:
        Rows as from `read_images`; for a table with a change data feed, its changes.

    Raises:
        TableError: There is no such table.
    """
    reader = spark.readStream.option("maxFilesPerTrigger", max_files)
    table = _table_at(spark, place)
    if table is None:
        files = reader.format("binaryFile").schema(_FILES)
        return files.option("recursiveFileLookup", "true").load(place)
    listed = spark.sql(f"SHOW TBLPROPERTIES {table}").collect()
    properties: dict[str, str] = {row["key"]: row["value"] for row in listed}
    if properties.get("delta.enableChangeDataFeed") == "true":
        reader = reader.option("readChangeFeed", "true")
    # readStream.table() does not accept a path.
    folder = quoted_path(table)
    return reader.table(table) if folder is None else reader.format("delta").load(folder)


def _table_at(spark: SparkSession, place: str) -> str | None:
    """Return the table's identifier in SQL; None for files."""
    check_place("input", place)
    quoted = quoted_path(place)
    if quoted is not None:
        return f"delta.{quote(quoted)}"
    is_path = "/" in place or _GLOB.search(place) or Path(place).exists()
    if not is_path:
        if not spark.catalog.tableExists(place):
            raise TableError(f"there is no table or folder named {place!r}")
        return place
    table = f"delta.{quote(absolute_path(place))}"
    return table if not _GLOB.search(place) and _is_table(spark, table) else None


def _is_table(spark: SparkSession, table: str) -> bool:
    try:
        return spark.catalog.tableExists(table)
    except AnalysisException:
        return False
