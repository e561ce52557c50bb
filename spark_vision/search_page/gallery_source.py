"""Who answers a search: exact search in Spark over a table, or a vector index."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from spark_vision.errors import InvalidOptionError, TableError, VectorIndexError
from spark_vision.search.column_model import ColumnModel, open_vectors
from spark_vision.search.exact import search_images
from spark_vision.tables.location import locate_table, quote

if TYPE_CHECKING:
    from spark_vision.search.vector_index import Hit, VectorIndex

# More values than this are typed, not chosen from a list.
_LISTED_VALUES = 50


@dataclass(frozen=True)
class GalleryColumns:
    """Which columns the page uses.

    Attributes:
        image: Paths or URLs of the pictures; None means the key.
        caption: A text to show with each picture, or None.
        filters: Columns to filter by; their values are shown.
    """

    image: str | None = None
    caption: str | None = None
    filters: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All of them, once each."""
        given = [self.image, self.caption, *self.filters]
        return list(dict.fromkeys(name for name in given if name is not None))


@dataclass(frozen=True)
class FoundPicture:
    """One result of a search.

    Attributes:
        id: The row's key: an index's id, or a tuple of a table's keys.
        score: The cosine similarity to the query.
        address: The path or URL of its picture; None where the row has none.
        caption: Its caption, or None.
        values: The values of the filter columns.
    """

    id: Any
    score: float
    address: str | None
    caption: str | None
    values: Mapping[str, str]

    @property
    def title(self) -> str:
        """The key as a text."""
        return ", ".join(map(str, self.id)) if isinstance(self.id, tuple) else str(self.id)


class GallerySource(Protocol):
    """Finds rows near a vector."""

    @property
    def name(self) -> str:
        """What is searched, for the page's heading."""
        ...

    @property
    def model(self) -> ColumnModel:
        """The model that filled the vectors."""
        ...

    @property
    def filters(self) -> Mapping[str, Sequence[str]]:
        """The columns to filter by, each with its values; with none where they are not listed."""
        ...

    def search(self, vector: np.ndarray, k: int, where: Mapping[str, str]) -> list[FoundPicture]:
        """Return the k rows nearest to a unit vector, the nearest first.

        Args:
            vector: float32 `[dimension]`.
            k: The maximum of rows.
            where: The value that a row must have, by column.
        """
        ...

    def vector_of(self, id: Any) -> np.ndarray | None:
        """Return the vector of a row; None where the row is gone."""
        ...


class SparkGallery:
    """Exact search over a table, in a Spark session.

    Args:
        spark: The session.
        table: A table of `write_vision_columns`.
        column: Its column of vectors.
        columns: What else the page uses.

    Raises:
        TableError: The table lacks one of the columns.
    """

    def __init__(
        self, spark: SparkSession, table: str, column: str, columns: GalleryColumns
    ) -> None:
        self._spark, self._column, self._columns = spark, column, columns
        rows, self.model = open_vectors(spark, table, column)
        self._sql, self._keys = locate_table(spark, table).sql, self.model.keys
        if columns.image is None and len(self._keys) > 1:
            raise TableError(
                f"{table} has the keys {', '.join(self._keys)}; say which column has the paths or "
                "URLs of the pictures (--images-column)"
            )
        self._image = columns.image or self._keys[0]
        for name in columns.names:
            if name not in rows.columns:
                listed = ", ".join(rows.columns)
                raise TableError(f"{table} has no column {name!r}; it has {listed}")
        kind = rows.schema[self._image].dataType
        if not isinstance(kind, StringType):
            raise TableError(
                f"{self._image} of {table} has the type {kind.simpleString()}; pass the column "
                "with the paths or URLs of the pictures (--images-column)"
            )
        self.name = table
        self.filters = {name: self._listed(name) for name in columns.filters}

    def search(self, vector: np.ndarray, k: int, where: Mapping[str, str]) -> list[FoundPicture]:
        """Return the k rows nearest to a unit vector, the nearest first."""
        terms = [_text(name) == F.lit(value) for name, value in where.items()]
        found = search_images(
            self._rows(),
            self._column,
            vector,
            k=k,
            keys=self._keys,
            where=reduce(and_, terms) if terms else None,
            keep=self._columns.names,
        )
        rows = [row.asDict() for row in found.collect() if row["rank"] is not None]
        return [
            _picture(self._id_of(row), row["score"], row, self._image, self._columns)
            for row in rows
        ]

    def vector_of(self, id: Any) -> np.ndarray | None:
        """Return the vector of a row; None where the row is gone."""
        pairs = zip(self._keys, id, strict=True)
        is_it = [F.col(quote(key)) == F.lit(value) for key, value in pairs]
        row = self._rows().filter(reduce(and_, is_it)).select(quote(self._column)).head()
        return None if row is None or row[0] is None else np.asarray(row[0], np.float32)

    def _id_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in self._keys)

    def _rows(self) -> DataFrame:
        # The table as it is now.
        return self._spark.table(self._sql)

    def _listed(self, name: str) -> list[str]:
        values = self._rows().select(_text(name).alias("value")).distinct()
        some = values.filter("value IS NOT NULL").limit(_LISTED_VALUES + 1)
        listed = [row["value"] for row in some.collect()]
        return sorted(listed) if len(listed) <= _LISTED_VALUES else []


class IndexGallery:
    """Search by a vector index, without Spark.

    Args:
        index: Filled from a table; its properties name the table, the column and the model.
        columns: What the page uses of its metadata.
        table: The table that it should have been filled from; None means any.
        column: The column, likewise.

    Raises:
        VectorIndexError: There is no such index, it has another table or column, or it lacks one
            of the columns.
        IndexConnectionError: It does not answer.
    """

    def __init__(
        self,
        index: "VectorIndex",
        columns: GalleryColumns,
        table: str | None = None,
        column: str | None = None,
    ) -> None:
        self._index, self._columns = index, columns
        # A client's connection is opened at its first call, which must not be two at once.
        self._lock = threading.Lock()
        found = index.describe()
        if found is None:
            raise VectorIndexError("there is no such index; fill one by jobs/index_vectors.py")
        properties = found.properties
        if "table" not in properties or "column" not in properties:
            raise VectorIndexError(
                f"{found.name} does not say which table it was filled from; fill one by "
                "jobs/index_vectors.py"
            )
        for what, given in (("table", table), ("column", column)):
            recorded = _place(properties[what])
            if given is not None and _place(given) != recorded:
                raise VectorIndexError(
                    f"{found.name} was filled from the {what} {recorded}, and --{what} got "
                    f"{given}; leave --{what} out"
                )
        self._kinds = found.metadata
        for name in columns.names:
            if self._kinds is not None and name not in self._kinds:
                listed = ", ".join(self._kinds) or "none"
                raise VectorIndexError(f"{found.name} has no column {name!r}; it has {listed}")
        if columns.image is None and found.id_type != "string":
            raise VectorIndexError(
                f"the ids of {found.name} are numbers; say which column has the paths or URLs of "
                "the pictures (--images-column)"
            )
        self.name = _place(properties["table"])
        self.model = ColumnModel(properties["table"], properties["column"], properties)
        self.filters: Mapping[str, Sequence[str]] = {
            name: ["true", "false"] if (self._kinds or {}).get(name) == "boolean" else []
            for name in columns.filters
        }

    def search(self, vector: np.ndarray, k: int, where: Mapping[str, str]) -> list[FoundPicture]:
        """Return the k rows nearest to a unit vector, the nearest first."""
        terms = {name: self._typed(name, value) for name, value in where.items()}
        names = self._columns.names
        queries = vector.reshape(1, -1)
        with self._lock:
            (hits,) = self._index.search(queries, k, metadata=names, where=terms or None)
        return [self._found(hit) for hit in hits]

    def vector_of(self, id: Any) -> np.ndarray | None:
        """Return the vector of a row; None where the row is gone."""
        with self._lock:
            return self._index.fetch([id]).get(id)

    def _found(self, hit: "Hit") -> FoundPicture:
        values = {"id": hit.id, **hit.metadata}
        return _picture(hit.id, hit.score, values, self._columns.image or "id", self._columns)

    def _typed(self, name: str, text: str) -> Any:
        """A filter's value, which the page knows as a text, in the column's own type."""
        if self._kinds is None:
            return _guessed(text)
        kind = self._kinds[name]
        try:
            if kind in ("byte", "short", "integer", "long"):
                return int(text)
            if kind in ("float", "double"):
                return float(text)
        except ValueError:
            raise InvalidOptionError(f"{name} got {text!r}; allowed: a number") from None
        return text == "true" if kind == "boolean" else text


def _picture(
    id: Any, score: float, row: Mapping[str, Any], image: str, columns: GalleryColumns
) -> FoundPicture:
    address, caption = row.get(image), row.get(columns.caption) if columns.caption else None
    return FoundPicture(
        id=id,
        score=float(score),
        address=None if address is None else str(address),
        caption=None if caption is None else str(caption),
        values={name: str(row[name]) for name in columns.filters if row.get(name) is not None},
    )


def _guessed(text: str) -> Any:
    """A value for an index that has no types: a number, true or false, or else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _text(name: str) -> Column:
    return F.col(quote(name)).cast("string")


def _place(name: str) -> str:
    """A path, or a table's name as Spark's SQL takes it, in one spelling."""
    path = name.strip().replace("`", "").removeprefix("delta.")
    if path.startswith("file:"):
        path = "/" + path.removeprefix("file:").lstrip("/")
    is_path = "/" in path and ":" not in path
    return str(Path(path).absolute()) if is_path else path
