"""Search by a vector index that was filled from a table, without a Spark session."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spark_vision.errors import InvalidOptionError, VectorIndexError
from spark_vision.search.column_model import ColumnModel
from spark_vision.search.vector_index import Hit, VectorIndex
from spark_vision.search_page.gallery_source import FoundPicture, GalleryColumns, make_picture


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
        index: VectorIndex,
        columns: GalleryColumns,
        table: str | None = None,
        column: str | None = None,
    ) -> None:
        self._index, self._columns = index, columns
        # A client's connection is opened at its first call, which must not be two at once.
        self._lock = threading.Lock()
        found = index.describe()
        if found is None:
            raise VectorIndexError("there is no such index; fill one by the job index_vectors")
        properties = found.properties
        if "table" not in properties or "column" not in properties:
            raise VectorIndexError(
                f"{found.name} does not say which table it was filled from; fill one by "
                "the job index_vectors"
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
        """Return the k rows nearest to a unit vector, the nearest first.

        Args:
            vector: float32 `[dimension]`.
            k: The maximum of rows.
            where: The value that a row must have, by column.
        """
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

    def _found(self, hit: Hit) -> FoundPicture:
        values = {"id": hit.id, **hit.metadata}
        return make_picture(hit.id, hit.score, values, self._columns.image or "id", self._columns)

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


def _guessed(text: str) -> Any:
    """A value for an index that has no types: a number, true or false, or else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _place(name: str) -> str:
    """A path, or a table's name as Spark's SQL takes it, in one spelling."""
    path = name.strip().replace("`", "").removeprefix("delta.")
    if path.startswith("file:"):
        path = "/" + path.removeprefix("file:").lstrip("/")
    is_path = "/" in path and ":" not in path
    return str(Path(path).absolute()) if is_path else path
