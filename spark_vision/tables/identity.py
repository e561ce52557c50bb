"""The table properties that record which model computed a column, and their comparison."""

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from spark_vision._version import __version__
from spark_vision.operators import Operator
from spark_vision.spark.driver_checks import ModelIdentity
from spark_vision.tables.source import SourceColumns, inputs_of

PREFIX = "spark_vision."
KEYS_PROPERTY = f"{PREFIX}keys"
VERSIONS_PROPERTY = f"{PREFIX}version_columns"

# These do not decide a value: equal weights have equal fingerprints, whatever their names.
_INFORMATIVE = ("model_name", "model_type", "revision", "package_version")


@dataclass(frozen=True)
class FilledColumn:
    """A column of a table, as the table's properties record it.

    Attributes:
        parts: The table's columns that belong to it: its value, its status, its error, ….
        reads: What of a row decides it, of `source.INPUTS`.
    """

    parts: tuple[str, ...]
    reads: tuple[str, ...]


def column_properties(
    name: str,
    operator: Operator,
    identity: ModelIdentity,
    parts: Iterable[str],
    prompt_column: str | None,
) -> dict[str, str]:
    """Describe the model that fills a column.

    Args:
        name: The column's.
        operator: What computes it.
        identity: Of the operator's checkpoint.
        parts: The table's columns that hold it.
        prompt_column: The column of each row's prompt; None means the operator's prompt.

    Returns:
        Table properties by their full names, such as `spark_vision.embedding.fingerprint`.
    """
    said = {
        "operator": type(operator).__name__,
        "parts": json.dumps(list(parts)),
        "reads": json.dumps(inputs_of(operator, prompt_column)),
        "model_name": operator.checkpoint_name,
        "model_type": identity.model_type,
        "revision": operator.revision or "",
        "fingerprint": identity.fingerprint,
        "dtype": operator.dtype,
        "package_version": __version__,
    }
    said |= operator.identity_options
    if "prompt" in operator.reads:
        said["prompt_column"] = prompt_column or ""
    if operator.returns_vectors:
        said["dimension"] = str(identity.dimension)
    return {f"{PREFIX}{name}.{key}": value for key, value in said.items()}


def table_properties(chosen: SourceColumns) -> dict[str, str]:
    """Describe the keys, what is read of a row, and how a change of an image is noticed."""
    said = {KEYS_PROPERTY: json.dumps(list(chosen.key_names))}
    said |= {input_property(name): column for name, column in chosen.input_names.items()}
    if chosen.image is not None:
        said[VERSIONS_PROPERTY] = json.dumps(list(chosen.version_names))
    return said


def input_property(name: str) -> str:
    """Return the property that names the column of an input, of `source.INPUTS`."""
    return f"{PREFIX}{name}_column"


def filled_columns(
    properties: Mapping[str, str], columns: Container[str] | None = None
) -> dict[str, FilledColumn]:
    """Read which columns of models a table has, of all writes that made it.

    Args:
        properties: The table's.
        columns: The table's own; a run that is killed can leave properties of columns that it was
            about to add. None: all are there.
    """
    found = {}
    for name in properties:
        if name.startswith(PREFIX) and name.endswith(".operator"):
            column = name.removeprefix(PREFIX).removesuffix(".operator")
            parts, reads = (
                tuple(json.loads(properties[f"{PREFIX}{column}.{key}"]))
                for key in ("parts", "reads")
            )
            if columns is None or all(part in columns for part in parts):
                found[column] = FilledColumn(parts, reads)
    return found


def deciding(properties: Mapping[str, str]) -> dict[str, str]:
    """Return the properties of columns that decide their values."""
    return {
        name: said
        for name, said in properties.items()
        if name.rsplit(".", 1)[-1] not in _INFORMATIVE
    }


def differing_model(
    name: str, present: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[str, str, str] | None:
    """Compare the model that filled a column with the one that would fill it now.

    Returns:
        The first property that differs, with its old and new value; None for the same model, or a
        column that does not exist yet.
    """
    start = f"{PREFIX}{name}."
    if f"{start}operator" not in present:
        return None
    for full, said in deciding(wanted).items():
        was = present.get(full, "nothing")
        if full.startswith(start) and was != said:
            return full.removeprefix(start), was, said
    return None
