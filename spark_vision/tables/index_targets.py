"""What vector indexes accept: ids, vectors and metadata, as their vendors document it."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    ByteType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    TimestampType,
)

_WHOLE = (ByteType, ShortType, IntegerType, LongType)
_NUMBERS = (*_WHOLE, FloatType, DoubleType)


@dataclass(frozen=True)
class IndexTarget:
    """What an index accepts.

    Attributes:
        dimensions: The minimum and maximum length of a vector.
        ids: The types of an id.
        text_ids: Whether an id is passed as text, whatever its type.
        id_bytes: The maximum length of a text id; None for no limit.
        ascii_ids: Whether a text id must be ASCII.
        metadata: The types of metadata.
        metadata_bytes: The maximum size of a row's metadata, as JSON; None for no limit.
        row_bytes: The maximum size of the whole row; None for no limit.
        nulls: Whether metadata may be null.
        reserved: Names that no column may have.
        needs_feed: Whether it is updated from the table's change data feed.
    """

    dimensions: tuple[int, int]
    ids: tuple[type[DataType], ...]
    text_ids: bool = False
    id_bytes: int | None = None
    ascii_ids: bool = False
    metadata: tuple[type[DataType], ...] = (StringType, BooleanType, *_NUMBERS)
    metadata_bytes: int | None = None
    row_bytes: int | None = None
    nulls: bool = True
    reserved: tuple[str, ...] = ()
    needs_feed: bool = False


# As the products' documentation had them on 2026-11-21.
TARGETS: Mapping[str, IndexTarget] = {
    "databricks_ai_search": IndexTarget(
        dimensions=(1, 4096),
        ids=(*_WHOLE, StringType),
        metadata=(StringType, BooleanType, *_NUMBERS, DateType, TimestampType, ArrayType),
        row_bytes=100 * 1024,
        reserved=("_id",),
        needs_feed=True,
    ),
    "pinecone": IndexTarget(
        dimensions=(1, 20_000),
        ids=(*_WHOLE, StringType),
        text_ids=True,
        id_bytes=512,
        ascii_ids=True,
        metadata=(StringType, BooleanType, *_NUMBERS, ArrayType),
        metadata_bytes=40 * 1024,
        nulls=False,
    ),
    "milvus": IndexTarget(
        dimensions=(2, 32_768),
        ids=(*_WHOLE, StringType),
        id_bytes=65_535,
        metadata=(StringType, BooleanType, *_NUMBERS, ArrayType),
        metadata_bytes=65_536,
        nulls=False,
    ),
}
