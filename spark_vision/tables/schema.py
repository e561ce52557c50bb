"""The columns of a table, and the constraints on them."""

from collections.abc import Mapping

from pyspark.sql.types import DataType, StringType, StructField, StructType, TimestampType

from spark_vision.errors import TableError
from spark_vision.operators import Operator
from spark_vision.spark.driver_checks import ModelIdentity
from spark_vision.spark.udfs import value_type
from spark_vision.tables.location import quote
from spark_vision.tables.source import INPUTS, SourceColumns

SOURCE_HASH = "source_hash"
UPDATED_AT = "updated_at"


def table_schema(
    source: SourceColumns,
    columns: Mapping[str, Operator],
    identities: Mapping[str, ModelIdentity],
) -> StructType:
    """Return a table's schema: keys, kept columns, source_hash, each operator's, updated_at.

    Raises:
        TableError: Two columns would have the same name.
    """
    fields = [StructField(field.name, field.dataType, nullable=False) for field in source.keys]
    fields += [StructField(field.name, field.dataType) for field in source.kept]
    hashes = StructType([StructField(name, StringType()) for name in INPUTS])
    fields.append(_described(SOURCE_HASH, hashes, "SHA-256 of what the models read"))
    for name, operator in columns.items():
        struct = value_type(operator)
        for part, column in column_parts(name, operator).items():
            kind = struct[part].dataType
            fields.append(_described(column, kind, _comment(part, operator, identities[name])))
    fields.append(_described(UPDATED_AT, TimestampType(), "when the row was last computed, in UTC"))
    _check_names(fields)
    return StructType(fields)


def column_parts(name: str, operator: Operator) -> dict[str, str]:
    """Return the table's column for each field of an operator's struct."""
    value, *more = value_type(operator).names
    return {value: name, **{part: f"{name}_{part}" for part in more}}


def vector_constraints(
    columns: Mapping[str, Operator], identities: Mapping[str, ModelIdentity]
) -> dict[str, str]:
    """Return the conditions, by constraint name, that reject vectors of the wrong length."""
    constraints = {}
    for name, operator in columns.items():
        if operator.returns_vectors:
            # Delta's constraints support no lambda: only the first token vector is checked.
            measured = f"{quote(name)}[0]" if _is_tokens(operator) else quote(name)
            constraints[constraint_name(name)] = (
                f"{quote(name)} IS NULL OR size({measured}) = {identities[name].dimension}"
            )
    return constraints


def constraint_name(name: str) -> str:
    """Return the name of the constraint on a column of vectors."""
    return f"{name}_dimension"


def _comment(part: str, operator: Operator, identity: ModelIdentity) -> str:
    model = f"{operator.checkpoint_name} ({identity.model_type}); null where the row failed"
    if part == next(iter(operator.value_fields)):
        each = " per token" if _is_tokens(operator) else ""
        made = f"{identity.dimension} numbers{each}" if operator.returns_vectors else "written"
        return f"{made} by {model}"
    return {
        "status": "ok, or why the row has no value",
        "error": "the reason in one sentence; null where ok",
        "truncated": "whether the caption was cut at its maximum length; null where not ok",
    }.get(part, f"{part} of the value")


def _is_tokens(operator: Operator) -> bool:
    return operator.effective_pooling == "tokens"


def _described(name: str, kind: DataType, comment: str) -> StructField:
    return StructField(name, kind, metadata={"comment": comment})


def _check_names(fields: list[StructField]) -> None:
    seen: set[str] = set()
    for field in fields:
        if field.name.lower() in seen:
            raise TableError(
                f"the table would have two columns {field.name}: keys, kept columns, "
                f"{SOURCE_HASH}, {UPDATED_AT} and <name>, <name>_status, <name>_error, … of each "
                "operator need different names; rename one"
            )
        seen.add(field.name.lower())
