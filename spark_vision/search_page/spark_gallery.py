"""Exact search over a table, in Spark: each query reads all of its vectors."""

from collections.abc import Mapping
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from spark_vision.errors import TableError
from spark_vision.search.column_model import open_vectors
from spark_vision.search.exact import search_images
from spark_vision.search_page.gallery_source import FoundPicture, GalleryColumns, make_picture
from spark_vision.tables.location import locate_table, quote

# More values than this are typed, not chosen from a list.
_LISTED_VALUES = 50


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
        """Return the k rows nearest to a unit vector, the nearest first.

        Args:
            vector: float32 `[dimension]`.
            k: The maximum of rows.
            where: The value that a row must have, by column.
        """
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
            make_picture(self._id_of(row), row["score"], row, self._image, self._columns)
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


def _text(name: str) -> Column:
    return F.col(quote(name)).cast("string")
