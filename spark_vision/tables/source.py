"""The columns that a write reads from its source: checked on the driver, before any task."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    CalendarIntervalType,
    CharType,
    DataType,
    DateType,
    DayTimeIntervalType,
    LongType,
    MapType,
    NullType,
    NumericType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
    UserDefinedType,
    VarcharType,
    YearMonthIntervalType,
)

from spark_vision.errors import InputTypeError, TableError
from spark_vision.images.sources import check_input_type
from spark_vision.operators import Operator, reads_images
from spark_vision.tables.location import quote
from spark_vision.tables.write_options import WriteOptions

# The inputs of operators; `source_hash` has a field for each.
INPUTS = ("image", "text", "prompt")

# Types that have one order and one text form, and that Delta stores.
_COMPARABLE = (
    BooleanType,
    CharType,
    DateType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
    VarcharType,
)

_NOT_STORED = (
    CalendarIntervalType,
    DayTimeIntervalType,
    NullType,
    UserDefinedType,
    YearMonthIntervalType,
)
# In Spark 4.1 and newer.
_NOT_STORED_NAMES = ("time",)

# The columns of Spark's binaryFile that change with the file.
_FILE_MARKS = {"modificationTime": TimestampType(), "length": LongType()}


@dataclass(frozen=True)
class SourceColumns:
    """The columns of a source that a write reads.

    Attributes:
        keys: They identify a row.
        kept: They are copied to the table.
        image: The column that image operators read; None without such operators.
        text: The column that text operators read; None without such operators.
        prompt: The prompt of each image; None where the operators have their own.
        versions: They change whenever a row's image does; empty where its bytes are compared.
    """

    keys: tuple[StructField, ...]
    kept: tuple[StructField, ...]
    image: StructField | None
    text: StructField | None
    prompt: StructField | None
    versions: tuple[StructField, ...] = ()

    @property
    def key_names(self) -> tuple[str, ...]:
        """The names of the keys."""
        return tuple(field.name for field in self.keys)

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The names of the columns that are copied."""
        return tuple(field.name for field in self.kept)

    @property
    def version_names(self) -> tuple[str, ...]:
        """The names of the columns that change whenever an image does."""
        return tuple(field.name for field in self.versions)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of `INPUTS` that the write reads."""
        return tuple(self.input_names)

    @property
    def input_names(self) -> dict[str, str]:
        """The columns that hold those inputs."""
        read = {"image": self.image, "text": self.text, "prompt": self.prompt}
        return {name: field.name for name in INPUTS if (field := read[name]) is not None}


def choose_columns(
    source: DataFrame,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    options: WriteOptions,
) -> SourceColumns:
    """Find the columns of a source, and check that each suits its purpose.

    Raises:
        TableError: A column is missing, or cannot be a key or a version; a name is used twice;
            there are prompts and no operator that reads them.
        InputTypeError: The image, text or prompt column has a type that its operators cannot read.
    """
    if isinstance(keys, str) or not keys:
        raise TableError(f"keys got {keys!r}; allowed: a list of one or more column names")
    fields = _fields_by_name(source)
    chosen = {name: _find(fields, name, what="key") for name in keys}
    kept = {name: _find(fields, name, what="kept") for name in options.keep}
    for name in (*chosen, *kept):
        if re.search(r"[ ,;{}()\n\t=]", name):
            raise TableError(
                f"the column {name!r} contains a character that Delta does not allow in a name, "
                "one of ' ,;{}()=', a tab or a newline; rename it: source.withColumnRenamed(...)"
            )
    for field in chosen.values():
        _check_comparable(field, what="key")
    for field in kept.values():
        _check_storable(field)
    image = text = None
    for name, operator in columns.items():
        unread = [each for each in operator.reads if each not in INPUTS]
        if unread:
            raise TableError(
                f"the column {name} would be computed from a {unread[0]} column, and a table is "
                f"computed from {', '.join(INPUTS)} columns; apply {operator.function} to the "
                "rows of a table, or use an operator that reads images"
            )
        if reads_images(operator):
            image = _find(fields, options.image_column, what="image")
            check_input_type(to_arrow_type(image.dataType), operator.image_src_type)
        if "text" in operator.reads:
            text = _find_strings(fields, options.text_column, what="text")
    prompt, prompt_column = None, options.prompt_column
    if prompt_column is not None:
        if not any("prompt" in each.reads for each in columns.values()):
            raise TableError(
                f"prompt_column got {prompt_column!r}, and no operator reads prompts; leave it out"
            )
        prompt = _find_strings(fields, prompt_column, what="prompt")
    for name, operator in columns.items():
        if operator.requires_prompt and prompt is None:
            raise TableError(
                f"the column {name} has no prompt: its operator's is None, and there is no "
                "prompt_column; set one of them"
            )
    versions = _choose_versions(fields, options.version_columns) if image else ()
    return SourceColumns(
        tuple(chosen.values()), tuple(kept.values()), image, text, prompt, versions
    )


def refuse_stream(source: DataFrame) -> None:
    """Refuse a streaming source.

    Raises:
        TableError: It is a stream.
    """
    if source.isStreaming:
        raise TableError(
            "the source is a stream; call stream_vision_columns, or write_vision_batch in its "
            "foreachBatch"
        )


def check_columns(source: DataFrame, names: Sequence[str], *, what: str) -> None:
    """Check that a source has these columns, and that their values have an order.

    Raises:
        TableError: One is missing, or has no order.
    """
    fields = _fields_by_name(source)
    for name in names:
        _check_comparable(_find(fields, name, what=what), what=what)


def inputs_of(operator: Operator, prompt_column: str | None) -> tuple[str, ...]:
    """Return those of `INPUTS` that decide what an operator computes for a row."""
    return tuple(name for name in operator.reads if name != "prompt" or prompt_column is not None)


def source_hash(columns: SourceColumns) -> Column:
    """Hash what the models read of a row.

    Returns:
        A struct with a field for each of `INPUTS`: SHA-256 in hex of the image, text and prompt;
        null where that is null, or is not read. An image is hashed by its bytes, or, with
        `version_columns`, by those and its URL: then no image is read for the hash.
    """
    read = {
        "image": _image_hash(columns),
        "text": _hash(columns.text),
        "prompt": _hash(columns.prompt),
    }
    return F.struct(*(read[name].alias(name) for name in INPUTS))


def _choose_versions(
    fields: Mapping[str, StructField], names: Sequence[str] | None
) -> tuple[StructField, ...]:
    if names is None:
        has_marks = all(
            name in fields and fields[name].dataType == kind for name, kind in _FILE_MARKS.items()
        )
        names = list(_FILE_MARKS) if has_marks else []
    chosen = tuple(_find(fields, name, what="version") for name in names)
    for field in chosen:
        _check_comparable(field, what="version")
    return chosen


def _image_hash(columns: SourceColumns) -> Column:
    if columns.image is None or not columns.versions:
        return _hash(columns.image)
    marks = [_mark(field) for field in columns.versions]
    if isinstance(columns.image.dataType, StringType):
        marks.append(F.col(quote(columns.image.name)))
    # JSON, so that values of neighbouring columns cannot run together.
    return F.sha2(F.to_json(F.array(*marks)), 256)


def _mark(field: StructField) -> Column:
    column = F.col(quote(field.name))
    # As text, a timestamp would depend on the session's time zone.
    is_time = isinstance(field.dataType, TimestampType)
    return (F.unix_micros(column) if is_time else column).cast("string")


def _hash(field: StructField | None) -> Column:
    return F.lit(None).cast("string") if field is None else F.sha2(_readable(field), 256)


def _readable(field: StructField) -> Column:
    column = F.col(quote(field.name))
    if not isinstance(field.dataType, StructType):
        return column.cast("binary")
    if "content" in field.dataType.names:
        return column["content"]
    # The same pixels are different images at different widths.
    shape = F.concat_ws(" ", *(column[name] for name in ("height", "width", "nChannels", "mode")))
    return F.concat(shape.cast("binary"), column["data"])


def _fields_by_name(source: DataFrame) -> dict[str, StructField]:
    fields: dict[str, StructField] = {}
    spelled: dict[str, str] = {}
    for field in source.schema.fields:
        other = spelled.setdefault(field.name.lower(), field.name)
        if field.name in fields:
            raise TableError(f"the source has two columns {field.name}; rename one")
        if other != field.name:
            raise TableError(
                f"the source has the columns {other} and {field.name}, which Spark does not "
                "distinguish; rename one"
            )
        fields[field.name] = field
    return fields


def _check_storable(field: StructField) -> None:
    lacking = _lacking_type(field.dataType)
    if lacking is not None:
        raise TableError(
            f"the kept column {field.name} has the type {lacking.simpleString()}, which Delta does "
            "not store; cast it, or leave it out"
        )


def _lacking_type(kind: DataType) -> DataType | None:
    """Return the part of a type that Delta cannot store; None where it stores all of it."""
    if isinstance(kind, _NOT_STORED) or kind.typeName() in _NOT_STORED_NAMES:
        return kind
    if isinstance(kind, ArrayType):
        return _lacking_type(kind.elementType)
    if isinstance(kind, MapType):
        return _lacking_type(kind.keyType) or _lacking_type(kind.valueType)
    if isinstance(kind, StructType):
        found = (_lacking_type(each.dataType) for each in kind.fields)
        return next((each for each in found if each is not None), None)
    return None


def _find_strings(fields: Mapping[str, StructField], name: str, *, what: str) -> StructField:
    field = _find(fields, name, what=what)
    if not isinstance(field.dataType, StringType):
        raise InputTypeError(
            f"the {what} column {name} has the type {field.dataType.simpleString()}; "
            "allowed: string"
        )
    return field


def _check_comparable(field: StructField, *, what: str) -> None:
    if not isinstance(field.dataType, _COMPARABLE):
        raise TableError(
            f"the {what} column {field.name} has the type {field.dataType.simpleString()}; "
            "allowed: numbers, strings, booleans, dates and timestamps"
        )


def _find(fields: Mapping[str, StructField], name: str, *, what: str) -> StructField:
    if name not in fields:
        raise TableError(
            f"the source has no column {name!r}, the {what} column; it has {', '.join(fields)}"
        )
    return fields[name]
