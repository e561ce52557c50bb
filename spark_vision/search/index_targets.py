"""What vector indexes accept: ids, vectors, metadata and requests, as their vendors document it."""

from collections.abc import Mapping
from dataclasses import dataclass

# Types by the names that Spark gives them; no pyspark is needed to read this.
_WHOLE = ("byte", "short", "integer", "long")
_NUMBERS = (*_WHOLE, "float", "double")


@dataclass(frozen=True)
class IndexTarget:
    """What an index accepts.

    Attributes:
        name: The index.
        dimensions: The minimum and maximum length of a vector.
        ids: The types of an id, by Spark's names.
        text_ids: Whether an id is passed as text, whatever its type.
        id_bytes: The maximum length of a text id; None for no limit.
        ascii_ids: Whether a text id must be ASCII.
        id_controls: The control characters that a text id may have.
        metadata: The types of metadata, by Spark's names; an array is one of strings.
        metadata_bytes: The maximum size of a row's metadata, as JSON; None for no limit.
        row_bytes: The maximum size of the whole row; None for no limit.
        nulls: Whether metadata may be null.
        reserved: Names that no column may have.
        needs_feed: Whether it is updated from the table's change data feed.
        zero_metrics: The metrics under which a vector of zeros is accepted.
        max_k: The maximum number of results of a query.
        counts_late: Whether its count of records may be some seconds behind.
        max_batch_rows: The maximum number of records, or of ids, in a request.
        max_request_bytes: The maximum size of a request's records.
    """

    name: str
    dimensions: tuple[int, int]
    ids: tuple[str, ...]
    text_ids: bool = False
    id_bytes: int | None = None
    ascii_ids: bool = False
    id_controls: str = "".join(map(chr, range(32)))
    metadata: tuple[str, ...] = ("string", "boolean", *_NUMBERS)
    metadata_bytes: int | None = None
    row_bytes: int | None = None
    nulls: bool = True
    reserved: tuple[str, ...] = ()
    needs_feed: bool = False
    zero_metrics: tuple[str, ...] = ()
    max_k: int = 10_000
    counts_late: bool = False
    max_batch_rows: int = 1000
    max_request_bytes: int = 2_000_000


# As the products' documentation had them on 2026-11-21; k and requests on 2026-11-24.
TARGETS: Mapping[str, IndexTarget] = {
    target.name: target
    for target in (
        IndexTarget(
            name="databricks_ai_search",
            dimensions=(1, 4096),
            ids=(*_WHOLE, "string"),
            metadata=("string", "boolean", *_NUMBERS, "date", "timestamp", "array"),
            row_bytes=100 * 1024,
            reserved=("_id",),
            needs_feed=True,
        ),
        IndexTarget(
            name="pinecone",
            dimensions=(1, 20_000),
            ids=(*_WHOLE, "string"),
            text_ids=True,
            id_bytes=512,
            ascii_ids=True,
            counts_late=True,
            metadata=("string", "boolean", *_NUMBERS, "array"),
            metadata_bytes=40 * 1024,
            nulls=False,
        ),
        IndexTarget(
            name="milvus",
            dimensions=(2, 32_768),
            ids=(*_WHOLE, "string"),
            id_bytes=65_535,
            # Those that a text of its filters can have.
            id_controls="\t\n\r",
            metadata=("string", "boolean", *_NUMBERS, "array"),
            metadata_bytes=65_536,
            nulls=False,
            zero_metrics=("IP",),
            max_k=16_384,
            # The service takes 64 MB by gRPC; smaller requests are tried again at less cost.
            max_batch_rows=10_000,
            max_request_bytes=16 * 1024 * 1024,
        ),
    )
}
