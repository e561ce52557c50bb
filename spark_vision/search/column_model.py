"""The model that filled a column of vectors, as the operator that embeds what is searched for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_vision.errors import TableError
from spark_vision.operators import OPERATORS, EmbeddingOperator, Operator
from spark_vision.spark.driver_checks import describe_model
from spark_vision.tables.identity import KEYS_PROPERTY, PREFIX
from spark_vision.tables.location import TableDetail, TableLocation, locate_table, read_detail

_TRUE = "true"


@dataclass(frozen=True)
class ColumnModel:
    """What a table's properties record of the model that filled a column of vectors.

    Args:
        table: The table's name in messages.
        column: The column.
        properties: The table's.

    Raises:
        TableError: The column was not filled with vectors by an operator of this package.
    """

    table: str
    column: str
    properties: Mapping[str, str]

    def __post_init__(self) -> None:
        if f"{PREFIX}{self.column}.dimension" not in self.properties:
            raise TableError(
                f"{self.table} has no column {self.column!r} of vectors by an operator"
            )

    @property
    def keys(self) -> list[str]:
        """The table's keys."""
        keys: list[str] = json.loads(self.properties[KEYS_PROPERTY])
        return keys

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self._recorded("dimension"))

    def operator_for(
        self, what: str, given: Operator | None, spark: SparkSession | None = None
    ) -> Operator:
        """Return the operator that embeds queries of a kind into the column's space.

        Args:
            what: `image` or `text`.
            given: An operator of the user's; None means that it is made from the properties.
            spark: The session, where the given operator's model has to be looked for on an
                executor; None where this process has it.

        Raises:
            TableError: The column's model does not embed such queries, or the given operator has
                another model.
        """
        operator = self._recorded_operator() if given is None else given
        if given is not None:
            self._check_model(given, spark)
        return other_side(operator, what)

    def _recorded(self, key: str) -> str:
        return self.properties.get(f"{PREFIX}{self.column}.{key}", "")

    def _recorded_operator(self) -> Operator:
        name = self._recorded("operator")
        if name not in OPERATORS:
            raise TableError(
                f"the column {self.column} of {self.table} was filled by {name}, which is not an "
                "operator of this package; pass operator="
            )
        # An option's own parser would read the file that a property names.
        options: dict[str, Any] = {
            "model_name": self._recorded("model_name"),
            "revision": self._recorded("revision") or None,
            "dtype": self._recorded("dtype"),
            "normalize": self._recorded("normalize") == _TRUE,
        }
        kind = OPERATORS[name]
        names = {field.name for field in fields(kind)}
        if "pooling" in names:
            options["pooling"] = self._recorded("pooling")
        if "image_processor_kwargs" in names:
            options["image_processor_kwargs"] = json.loads(
                self._recorded("image_processor_kwargs") or "{}"
            )
            options["fast_decode"] = self._recorded("fast_decode") == _TRUE
        return kind(**options)

    def _check_model(self, operator: Operator, spark: SparkSession | None) -> None:
        found = describe_model(operator, spark).fingerprint
        was = self._recorded("fingerprint")
        pooling = operator.effective_pooling or ""
        if found != was or pooling != self._recorded("pooling"):
            raise TableError(
                f"the column {self.column} of {self.table} was filled by "
                f"{self._recorded('model_name')} with the pooling {self._recorded('pooling')}, and "
                f"operator has {operator.checkpoint_name} with the pooling {pooling}; vectors of "
                "two models do not compare: leave operator out, and the column's own is used"
            )


def open_vectors(spark: SparkSession, table: str, column: str) -> tuple[DataFrame, ColumnModel]:
    """Return the rows of a table, and the model that filled a column of vectors.

    Raises:
        TableError: This package did not write the table, or the column is not one of vectors.
    """
    location = locate_table(spark, table)
    _, model = read_model(spark, location, column)
    return spark.table(location.sql), model


def read_model(
    spark: SparkSession, location: TableLocation, column: str
) -> tuple[TableDetail, ColumnModel]:
    """Read the details of a table, and the model that filled a column of vectors.

    Raises:
        TableError: This package did not write the table, or the column is not one of vectors.
    """
    detail = read_detail(spark, location)
    if detail is None or KEYS_PROPERTY not in detail.properties:
        raise TableError(
            f"{location.given} was not written by write_vision_columns; choose another table"
        )
    return detail, ColumnModel(location.given, column, detail.properties)


def other_side(operator: Operator, what: str) -> Operator:
    """Return an operator's counterpart that reads images or texts, with the same checkpoint.

    Raises:
        TableError: There is none: the checkpoint embeds images only.
    """
    if operator.reads == (what,) and operator.returns_vectors:
        return operator
    for kind in OPERATORS.values():
        is_embedding = issubclass(kind, EmbeddingOperator)
        if is_embedding and kind.reads == (what,) and kind.families == operator.families:
            return operator.convert(kind)
    raise TableError(
        f"{type(operator).__name__} has no space that it shares with texts; search with an image "
        "or a vector, or embed the column with a CLIP-like checkpoint"
    )
