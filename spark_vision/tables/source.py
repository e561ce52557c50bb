"""What a write takes from its source: checked on the driver, before any task."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import AtomicType, BinaryType, StringType, StructField, StructType

from spark_vision.errors import InputTypeError, TableError
from spark_vision.images.sources import check_input_type
from spark_vision.operators import ImageOperator, Operator, QwenVLImageUnderstanding
from spark_vision.tables.location import quote


@dataclass(frozen=True)
class SourceColumns:
    """The columns of a source that a write reads.

    Attributes:
        keys: They tell rows apart.
        kept: They are copied to the table.
        image: What image operators read; None where there is none.
        text: What text operators read; None where there is none.
        prompt: What is asked of each image; None where the operators bring their prompts.
    """

    keys: tuple[StructField, ...]
    kept: tuple[StructField, ...]
    image: StructField | None
    text: StructField | None
    prompt: StructField | None

    @property
    def key_names(self) -> tuple[str, ...]:
        """The names of the keys."""
        return tuple(field.name for field in self.keys)


def choose_columns(
    source: DataFrame,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    image_column: str,
    text_column: str,
    prompt_column: str | None,
    keep: Sequence[str],
) -> SourceColumns:
    """Find the columns of a source, and check that they can be what they shall be.

    Raises:
        TableError: A column is not there, or cannot be a key; a name is used twice; there are
            prompts and no operator that reads them.
        InputTypeError: The image, text or prompt column has a type that its operators cannot read.
    """
    if isinstance(keys, str) or not keys:
        raise TableError(f"keys got {keys!r}; allowed: a list of one or more column names")
    fields = _fields_by_name(source)
    chosen = {name: _find(fields, name, what="key") for name in keys}
    kept = {name: _find(fields, name, what="kept") for name in keep}
    for name in (*chosen, *kept):
        if re.search(r"[ ,;{}()\n\t=]", name):
            raise TableError(
                f"the column {name!r} has a character that Delta does not take in a name, one of "
                "' ,;{}()=', a tab or a newline; rename it: source.withColumnRenamed(...)"
            )
    for name, field in chosen.items():
        if not isinstance(field.dataType, AtomicType) or isinstance(field.dataType, BinaryType):
            raise TableError(
                f"the key column {name} has the type {field.dataType.simpleString()}; allowed: "
                "numbers, strings, booleans, dates and timestamps"
            )
    image = text = None
    for operator in columns.values():
        if isinstance(operator, ImageOperator):
            image = _find(fields, image_column, what="image")
            check_input_type(to_arrow_type(image.dataType), operator.image_src_type)
        else:
            text = _find_strings(fields, text_column, what="text")
    prompt = None
    if prompt_column is not None:
        if not any(isinstance(each, QwenVLImageUnderstanding) for each in columns.values()):
            raise TableError(
                f"prompt_column got {prompt_column!r}, and no column is by an operator that reads "
                "prompts; leave it out"
            )
        prompt = _find_strings(fields, prompt_column, what="prompt")
    return SourceColumns(tuple(chosen.values()), tuple(kept.values()), image, text, prompt)


def source_hash(columns: SourceColumns) -> Column:
    """Hash what the models read of a row: SHA-256 in hex; null where all of it is null.

    Of strings it is the hash of the string, such as a URL: the bytes behind it are not fetched.
    """
    read = (columns.image, columns.text, columns.prompt)
    parts = [_readable(field) for field in read if field is not None]
    if len(parts) == 1:
        return F.sha2(parts[0], 256)
    hashes = [F.coalesce(F.sha2(part, 256), F.lit("")) for part in parts]
    return F.when(
        F.coalesce(*(part.isNotNull() for part in parts)), F.sha2(F.concat_ws(" ", *hashes), 256)
    )


def _readable(field: StructField) -> Column:
    column = F.col(quote(field.name))
    if not isinstance(field.dataType, StructType):
        return column.cast("binary")
    if "content" in field.dataType.names:
        return column["content"]
    # The pixels of Spark's image struct mean different images at different widths.
    shape = F.concat_ws(" ", *(column[name] for name in ("height", "width", "nChannels", "mode")))
    return F.concat(shape.cast("binary"), column["data"])


def _fields_by_name(source: DataFrame) -> dict[str, StructField]:
    fields: dict[str, StructField] = {}
    for field in source.schema.fields:
        if field.name in fields:
            raise TableError(f"the source has two columns {field.name}; rename one")
        fields[field.name] = field
    return fields


def _find_strings(fields: Mapping[str, StructField], name: str, *, what: str) -> StructField:
    field = _find(fields, name, what=what)
    if not isinstance(field.dataType, StringType):
        raise InputTypeError(
            f"the {what} column {name} has the type {field.dataType.simpleString()}; "
            "allowed: string"
        )
    return field


def _find(fields: Mapping[str, StructField], name: str, *, what: str) -> StructField:
    if name not in fields:
        raise TableError(
            f"the source has no column {name!r}, the {what} column; it has {', '.join(fields)}"
        )
    return fields[name]
