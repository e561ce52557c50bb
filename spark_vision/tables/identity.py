"""Which model filled a column: what a table's properties say of it, and when two are the same."""

import json
from collections.abc import Mapping

import spark_vision
from spark_vision.checks import ModelIdentity
from spark_vision.errors import TableError
from spark_vision.operators import EmbeddingOperator
from spark_vision.options import FrozenMapping

PREFIX = "spark_vision."
COLUMNS_PROPERTY = f"{PREFIX}columns"
KEYS_PROPERTY = f"{PREFIX}keys"

# What decides a vector's value. The name and the revision do not: equal weights have equal
# fingerprints.
_DECISIVE = (
    "operator",
    "fingerprint",
    "image_processor_kwargs",
    "pooling",
    "normalize",
    "dtype",
    "dimension",
)


def column_properties(
    name: str, operator: EmbeddingOperator, identity: ModelIdentity
) -> dict[str, str]:
    """Say which model fills a column.

    Args:
        name: The column's.
        operator: What computes it.
        identity: Of the operator's checkpoint.

    Returns:
        Table properties by their full names, such as `spark_vision.embedding.fingerprint`.
    """
    overrides = getattr(operator, "image_processor_kwargs", None)
    thawed = overrides.thaw() if isinstance(overrides, FrozenMapping) else {}
    said = {
        "operator": type(operator).__name__,
        "model_name": operator.checkpoint_name,
        "model_type": identity.model_type,
        "revision": operator.revision or "",
        "fingerprint": identity.fingerprint,
        "image_processor_kwargs": json.dumps(thawed, sort_keys=True),
        "pooling": operator.effective_pooling,
        "normalize": str(operator.normalize).lower(),
        "dtype": operator.dtype,
        "dimension": str(identity.dimension),
        "package_version": spark_vision.__version__,
    }
    return {f"{PREFIX}{name}.{key}": value for key, value in said.items()}


def table_properties(
    keys: tuple[str, ...],
    columns: Mapping[str, EmbeddingOperator],
    identities: Mapping[str, ModelIdentity],
) -> dict[str, str]:
    """Say whose table it is: its keys, its columns and the model of each."""
    properties = {
        KEYS_PROPERTY: json.dumps(list(keys)),
        COLUMNS_PROPERTY: json.dumps(list(columns)),
    }
    for name, operator in columns.items():
        properties |= column_properties(name, operator, identities[name])
    return properties


def check_same_models(
    table: str,
    present: Mapping[str, str],
    wanted: Mapping[str, str],
    columns: Mapping[str, EmbeddingOperator],
) -> None:
    """Make sure that a table was made for these keys and columns, by these models.

    Args:
        table: Its name in messages.
        present: The table's properties.
        wanted: What `table_properties` says of this write.
        columns: The operators by column.

    Raises:
        TableError: It was not; the message says what differs, and the way out.
    """
    if COLUMNS_PROPERTY not in present:
        raise TableError(f"{table} was not made by spark_vision; choose another table")
    for what, name in (("keys", KEYS_PROPERTY), ("columns", COLUMNS_PROPERTY)):
        was, now = (sorted(json.loads(said[name])) for said in (present, wanted))
        if was != now:
            raise TableError(
                f"{table} has the {what} {', '.join(was)}, and this write has {', '.join(now)}; "
                "write the same ones, or choose another table"
            )
    for column in columns:
        for key in _DECISIVE:
            name = f"{PREFIX}{column}.{key}"
            if present.get(name) != wanted[name]:
                raise TableError(
                    f"{table} has the column {column} by "
                    f"{present.get(f'{PREFIX}{column}.model_name')} with {key} "
                    f"{present.get(name)}, and this write has {key} {wanted[name]}; vectors of two "
                    "models do not compare: choose another table, or another column name in a "
                    "table of its own"
                )
