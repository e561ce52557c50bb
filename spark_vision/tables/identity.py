"""Which model filled a column: what a table's properties say of it, and when two are the same."""

import json
from collections.abc import Mapping

import spark_vision
from spark_vision.checks import ModelIdentity
from spark_vision.errors import TableError
from spark_vision.operators import EmbeddingOperator, Operator, QwenVLImageUnderstanding
from spark_vision.options import FrozenMapping

PREFIX = "spark_vision."
COLUMNS_PROPERTY = f"{PREFIX}columns"
KEYS_PROPERTY = f"{PREFIX}keys"

# What does not decide a value: equal weights have equal fingerprints, whatever they are called.
_INFORMATIVE = ("model_name", "model_type", "revision", "package_version")


# What decides a caption, beside the model and the prompt.
_CAPTION_OPTIONS = (
    "max_caption_length",
    "resized_height",
    "resized_width",
    "min_pixels",
    "max_pixels",
    "repetition_penalty",
    "do_sample",
)
_SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "seed")


def column_properties(
    name: str, operator: Operator, identity: ModelIdentity, prompt_column: str | None
) -> dict[str, str]:
    """Say which model fills a column.

    Args:
        name: The column's.
        operator: What computes it.
        identity: Of the operator's checkpoint.
        prompt_column: Where each row's prompt comes from; None: from the operator.

    Returns:
        Table properties by their full names, such as `spark_vision.embedding.fingerprint`.
    """
    said = {
        "operator": type(operator).__name__,
        "model_name": operator.checkpoint_name,
        "model_type": identity.model_type,
        "revision": operator.revision or "",
        "fingerprint": identity.fingerprint,
        "dtype": operator.dtype,
        "package_version": spark_vision.__version__,
    }
    if isinstance(operator, EmbeddingOperator):
        said |= _embedding_properties(operator, identity)
    elif isinstance(operator, QwenVLImageUnderstanding):
        said |= _caption_properties(operator, prompt_column)
    return {f"{PREFIX}{name}.{key}": value for key, value in said.items()}


def _embedding_properties(operator: EmbeddingOperator, identity: ModelIdentity) -> dict[str, str]:
    overrides = getattr(operator, "image_processor_kwargs", None)
    thawed = overrides.thaw() if isinstance(overrides, FrozenMapping) else {}
    return {
        "image_processor_kwargs": json.dumps(thawed, sort_keys=True),
        "pooling": operator.effective_pooling,
        "normalize": str(operator.normalize).lower(),
        "dimension": str(identity.dimension),
    }


def _caption_properties(
    operator: QwenVLImageUnderstanding, prompt_column: str | None
) -> dict[str, str]:
    names = [*_CAPTION_OPTIONS, *(_SAMPLING_OPTIONS if operator.do_sample else ())]
    generation = {name: getattr(operator, name) for name in names}
    return {
        "prompt": operator.prompt or "",
        "prompt_column": prompt_column or "",
        "generation": json.dumps(generation, sort_keys=True),
    }


def table_properties(
    keys: tuple[str, ...],
    columns: Mapping[str, Operator],
    identities: Mapping[str, ModelIdentity],
    prompt_column: str | None,
) -> dict[str, str]:
    """Say whose table it is: its keys, its columns and the model of each."""
    properties = {
        KEYS_PROPERTY: json.dumps(list(keys)),
        COLUMNS_PROPERTY: json.dumps(list(columns)),
    }
    for name, operator in columns.items():
        properties |= column_properties(name, operator, identities[name], prompt_column)
    return properties


def check_same_models(
    table: str,
    present: Mapping[str, str],
    wanted: Mapping[str, str],
    columns: Mapping[str, Operator],
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
        start = f"{PREFIX}{column}."
        keys = [name.removeprefix(start) for name in wanted if name.startswith(start)]
        for key in keys:
            name = start + key
            if key not in _INFORMATIVE and present.get(name) != wanted[name]:
                raise TableError(
                    f"{table} has the column {column} by "
                    f"{present.get(f'{PREFIX}{column}.model_name')} with {key} "
                    f"{present.get(name)}, and this write has {key} {wanted[name]}; values of two "
                    "models do not compare: choose another table, or another column name in a "
                    "table of its own"
                )
