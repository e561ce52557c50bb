"""The location of a table: a path or a catalog name, in the form that Spark SQL accepts."""

import re
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from spark_vision.errors import TableError
from spark_vision.images.urls import holds_user, redact_text
from spark_vision.operators.locations import parse_scheme

_PART = re.compile(r"`[^`]+`|[\w-]+")
_NAME = re.compile(rf"(?:{_PART.pattern})(?:\.(?:{_PART.pattern})){{0,2}}")
_MISSING = ("DELTA_MISSING_DELTA_TABLE", "DELTA_TABLE_NOT_FOUND", "TABLE_OR_VIEW_NOT_FOUND")


@dataclass(frozen=True)
class TableLocation:
    """A table's place.

    Attributes:
        sql: As SQL and `spark.table` take it: delta.`/path` or `catalog`.`schema`.`table`.
        given: As the user wrote it, for messages.
    """

    sql: str
    given: str


def locate_table(spark: SparkSession, table: str) -> TableLocation:
    """Parse a table's path or name.

    Args:
        spark: Its catalogs decide whether a name outlives the session.
        table: A path (`/a/b`, `./b`, `dbfs:/a`, `s3a://bucket/b`, delta.`/a/b`), or a name
            (`[catalog.][schema.]table`).

    Raises:
        TableError: It is neither; it is a name in a catalog that does not persist; or its path
            contains a password, or characters that Spark would read in another way.
    """
    check_place("table", table)
    quoted = quoted_path(table)
    path = quoted or table.strip()
    if quoted or "/" in path:
        return TableLocation(sql=f"delta.{quote(absolute_path(path))}", given=table)
    parts = [part.strip("`") for part in _PART.findall(path)]
    if not _NAME.fullmatch(path):
        raise TableError(
            f"the table {table!r} is neither a path nor a name; allowed: a path such as "
            "/folder/table, or a name such as table, schema.table, catalog.schema.table"
        )
    catalog = parts[0] if len(parts) == 3 else spark.catalog.currentCatalog()
    if (
        catalog == "spark_catalog"
        and spark.conf.get("spark.sql.catalogImplementation") == "in-memory"
    ):
        raise TableError(
            f"the name {table!r} would be lost with this session, whose catalog is in memory; "
            f"give a path such as /folder/{parts[-1]}, or start Spark with a catalog that "
            "persists (--conf spark.sql.catalogImplementation=hive)"
        )
    return TableLocation(sql=".".join(quote(part) for part in parts), given=table)


def checkpoint_in(table: str, column: str) -> str:
    """Return the default checkpoint location of a stream: a folder within the table's own.

    Raises:
        TableError: The table is a name, whose folder only the catalog knows.
    """
    quoted = quoted_path(table)
    path = quoted or table.strip()
    if not quoted and "/" not in path:
        raise TableError(
            f"a stream to the table {table!r} needs a checkpoint location; set it with "
            "--checkpoint-location"
        )
    return f"{path.rstrip('/')}/_spark_vision_checkpoint/{column}"


@dataclass(frozen=True)
class TableDetail:
    """An existing Delta table.

    Attributes:
        properties: Its properties.
        folder: The folder of its files.
        schema: Its columns.
        is_empty: Whether it has no rows.
        id: Delta's id of it; a table that is made again at the same place has another.
    """

    properties: dict[str, str]
    folder: str
    schema: StructType
    is_empty: bool
    id: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(self.schema.names)


def read_detail(spark: SparkSession, location: TableLocation) -> TableDetail | None:
    """Read the details of a Delta table.

    Returns:
        None where there is no table.

    Raises:
        TableError: Something other than a Delta table exists there.
    """
    try:
        if not spark.catalog.tableExists(location.sql):
            return None
        detail = spark.sql(f"DESCRIBE DETAIL {location.sql}").head()
    except AnalysisException as error:
        condition = error.getCondition() or ""
        if condition in _MISSING:
            return None
        if condition.startswith("EXPECT_TABLE_NOT_VIEW"):
            raise TableError(f"{location.given} is a view; choose another table") from error
        raise
    if detail is None or detail["format"] != "delta":
        raise TableError(f"{location.given} is not a Delta table; choose another table")
    schema = spark.table(location.sql).schema
    is_empty = detail["numFiles"] == 0
    properties = dict(detail["properties"])
    return TableDetail(properties, detail["location"], schema, is_empty, detail["id"])


def read_version(spark: SparkSession, location: TableLocation) -> int:
    """Return the newest version of a Delta table."""
    row = spark.sql(f"DESCRIBE HISTORY {location.sql} LIMIT 1").head()
    if row is None:
        raise TableError(f"{location.given} has no history; choose another table")
    return int(row["version"])


def quoted_path(table: str) -> str | None:
    """Return the path in delta.`/path`; None where a table is named in another way."""
    quoted = re.fullmatch(r"(?i:delta)\.`(.+)`", table.strip())
    return quoted[1].replace("``", "`") if quoted else None


def absolute_path(path: str) -> str:
    """Return a path that means the same in every process; one with a scheme already does."""
    return path if parse_scheme(path) or path.startswith("/") else str(Path(path).absolute())


def check_place(what: str, place: str) -> None:
    """Refuse a path or name that SQL cannot be given as it is, or that nobody should be shown.

    Args:
        what: What it is, for messages.
        place: As the user wrote it.

    Raises:
        TableError: It has `${…}`, which Spark's SQL replaces by settings and the environment, even
            within quotes; a backslash, which file systems read in different ways; or a password.
    """
    if holds_user(quoted_path(place) or place.strip()):
        raise TableError(
            f"the {what} {redact_text(place)!r} contains a user name or password; set them in "
            "Spark's settings of that file system (spark.hadoop.…)"
        )
    for unclear, why in (("${", "replaces in SQL"), ("\\", "reads in several ways")):
        if unclear in place:
            raise TableError(
                f"the {what} {place!r} contains {unclear!r}, which Spark {why}; choose another "
                "name, or rename the folder"
            )


def quote(name: str) -> str:
    """Quote one part of a name for SQL.

    Raises:
        TableError: It has `${…}`, which Spark would replace, even within the quotes.
    """
    if "${" in name:
        raise TableError(
            f"the name {name!r} contains '${{', which Spark replaces in SQL; rename the column"
        )
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """Write a text for SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    # Spark would put a variable in the place of ${...}, even inside of a literal.
    return "'" + escaped.replace("$", "\\u0024") + "'"
