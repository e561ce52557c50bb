"""Records on their way to an index: checked one by one before any of them is sent."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spark_vision.errors import VectorIndexError
from spark_vision.search.index_targets import IndexTarget
from spark_vision.search.retries import RequestRefusedError
from spark_vision.search.vector_index import Id, IndexDescription, RejectedRecord

ID, VECTOR = "id", "vector"
# So many in one call are no longer single bad records: something is wrong with all of them.
_MAX_REFUSED = 100
_NAMES = {
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.date32(): "date",
}
_WHOLE = ("byte", "short", "integer", "long")


@dataclass(frozen=True)
class Records:
    """Records that were found good.

    Attributes:
        ids: Their ids, as the index takes them.
        vectors: Float32 of shape (records, dimension).
        metadata: The metadata of each.
    """

    ids: Sequence[Id]
    vectors: np.ndarray
    metadata: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> "Records":
        """Return the records from `start` to before `end`."""
        return Records(self.ids[start:end], self.vectors[start:end], self.metadata[start:end])


def type_name(kind: pa.DataType) -> str:
    """Return Spark's name of an Arrow type; `array` only for lists of strings."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "array" if type_name(kind.value_type) == "string" else str(kind)
    return _NAMES.get(kind, "timestamp" if pa.types.is_timestamp(kind) else str(kind))


def is_text_id(target: IndexTarget, kind: pa.DataType) -> bool:
    """Whether ids of a type are text in the index."""
    return target.text_ids or type_name(kind) == "string"


def metadata_types(schema: pa.Schema) -> dict[str, str]:
    """Return the type of each column that is neither the id nor the vector."""
    return {each.name: type_name(each.type) for each in schema if each.name not in (ID, VECTOR)}


def check_schema(target: IndexTarget, schema: pa.Schema, dimension: int) -> None:
    """Refuse columns that no index of this kind can hold.

    Raises:
        VectorIndexError: One is missing, or has a type that the target lacks; or the dimension
            is outside its bounds.
    """
    for name in (ID, VECTOR):
        if name not in schema.names:
            raise VectorIndexError(f"the records have no column {name!r}; have {schema.names}")
    if (kind := type_name(schema.field(ID).type)) not in target.ids:
        raise VectorIndexError(f"an id has the type {kind}; {target.name} takes {target.ids}")
    vector = schema.field(VECTOR).type
    is_list = pa.types.is_fixed_size_list(vector) or pa.types.is_list(vector)
    if not (is_list or pa.types.is_large_list(vector)) or vector.value_type != pa.float32():
        raise VectorIndexError(f"the column vector has the type {vector}; pass lists of float32")
    if pa.types.is_fixed_size_list(vector) and vector.list_size != dimension:
        raise VectorIndexError(
            f"the records' vectors have {vector.list_size} numbers, and the index {dimension}; "
            "use another index, or remove this one"
        )
    least, most = target.dimensions
    if not least <= dimension <= most:
        raise VectorIndexError(
            f"a vector has {dimension} numbers; {target.name} takes {least} to {most}"
        )
    for name, kind in metadata_types(schema).items():
        if kind not in target.metadata:
            raise VectorIndexError(
                f"the metadata column {name} has the type {kind}; {target.name} takes numbers, "
                "strings, booleans and lists of strings: leave it out or cast it"
            )
        if name in target.reserved:
            raise VectorIndexError(f"{target.name} uses the name {name} itself; rename the column")


def check_suits(
    target: IndexTarget,
    found: IndexDescription,
    schema: pa.Schema,
    *,
    dimension: int,
    metric: str,
) -> None:
    """Refuse an index that exists and does not suit the records to come.

    Raises:
        VectorIndexError: Its dimension, metric, ids or metadata are others; nothing was changed.
    """
    check_schema(target, schema, dimension)
    if found.dimension != dimension:
        raise VectorIndexError(
            f"{found.name} has vectors of {found.dimension} numbers, and these have {dimension}: "
            "they are another model's; use another index, or remove this one"
        )
    if found.metric.lower() != metric.lower():
        raise VectorIndexError(
            f"{found.name} has the metric {found.metric}, and {metric} was asked for; pass "
            f"metric={found.metric!r}, or use another index"
        )
    wanted = "string" if is_text_id(target, schema.field(ID).type) else "long"
    if found.id_type != wanted:
        raise VectorIndexError(
            f"{found.name} has ids of the type {found.id_type}, and these are {wanted}; "
            "use another index"
        )
    if found.metadata is None:
        return
    for name, kind in metadata_types(schema).items():
        if name not in found.metadata:
            raise VectorIndexError(
                f"{found.name} has no field for the metadata column {name}; it has "
                f"{', '.join(found.metadata) or 'none'}: leave it out, or use another index"
            )
        if not _holds(found.metadata[name], kind):
            raise VectorIndexError(
                f"{found.name} has the field {name} of the type {found.metadata[name]}, and the "
                f"metadata are {kind}; cast them, or use another index"
            )


def _holds(field: str, kind: str) -> bool:
    if field in _WHOLE and kind in _WHOLE:
        return _WHOLE.index(kind) <= _WHOLE.index(field)
    return field == kind or (field, kind) == ("double", "float")


def check_query(
    target: IndexTarget, vectors: np.ndarray, k: int, *, dimension: int, metric: str
) -> np.ndarray:
    """Return queries as float32 of shape (queries, dimension), or say what is wrong with them.

    Raises:
        VectorIndexError: k, their dimension, or one of them is not usable.
    """
    if not 1 <= k <= target.max_k:
        raise VectorIndexError(f"k is {k}; {target.name} gives 1 to {target.max_k:,} results")
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise VectorIndexError(
            f"queries have the shape {queries.shape}, and the index holds vectors of {dimension} "
            "numbers; pass (queries, dimension) by the same model"
        )
    if not np.isfinite(queries).all():
        raise VectorIndexError("a query has NaN or infinity")
    if metric not in target.zero_metrics and not queries.any(axis=1).all():
        raise VectorIndexError(f"a query is a vector of zeros, which {metric} cannot compare")
    return queries


def accept(
    target: IndexTarget,
    records: pa.Table | pa.RecordBatch,
    found: IndexDescription,
    metric: str,
) -> tuple[Records, list[RejectedRecord]]:
    """Separate the records that the index can hold from the others.

    Args:
        target: What the index accepts.
        records: With the columns `id`, `vector` and metadata.
        found: The index.
        metric: Its metric as it was asked for, by the target's name.

    Returns:
        The good ones, of several with one id the last; and each other one with its reason.

    Raises:
        VectorIndexError: The columns themselves do not suit the index.
    """
    dimension = found.dimension
    check_suits(target, found, records.schema, dimension=dimension, metric=metric)
    table = pa.table(records) if isinstance(records, pa.RecordBatch) else records
    text = is_text_id(target, table.schema.field(ID).type)
    ids = table[ID].cast(pa.string()).to_pylist() if text else table[ID].to_pylist()
    has_length, vectors = _dense(table[VECTOR].combine_chunks(), dimension)
    finite = np.isfinite(vectors).all(axis=1)
    is_zero = ~np.asarray(vectors.any(axis=1)) & (metric not in target.zero_metrics)
    metadata = table.drop_columns([ID, VECTOR]).to_pylist() or [{} for _ in ids]
    longest = min(filter(None, (target.id_bytes, found.id_bytes)), default=None)
    last = {each: place for place, each in enumerate(ids)}

    good: list[int] = []
    rejected: list[RejectedRecord] = []
    for place, each in enumerate(ids):
        if last[each] != place:
            continue
        problem = id_problem(target, each, longest)
        if problem is None and not has_length[place]:
            problem = f"its vector does not have {dimension} numbers"
        if problem is None and not finite[place]:
            problem = "its vector has null, NaN or infinity"
        if problem is None and is_zero[place]:
            problem = f"its vector is all zeros, which {metric} cannot compare"
        if problem is None:
            problem = _metadata_problem(target, metadata[place])
        if problem is None:
            good.append(place)
        else:
            rejected.append(RejectedRecord(each, problem))
    taken = [metadata[place] for place in good]
    return Records([ids[place] for place in good], vectors[good], taken), rejected


def _dense(column: pa.Array, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Which lists have the dimension; and all as a matrix, a null or a wrong one as NaN."""
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
    has_length = lengths == dimension
    numbers = pc.list_flatten(column.filter(pa.array(has_length)))
    vectors = np.full((len(column), dimension), np.nan, dtype=np.float32)
    vectors[has_length] = numbers.to_numpy(zero_copy_only=False).reshape(-1, dimension)
    return has_length, vectors


def id_problem(target: IndexTarget, value: Id | None, longest: int | None) -> str | None:
    """Return why an index cannot have an id, which has at most `longest` bytes; None if it can."""
    if value is None:
        return "its id is null"
    if isinstance(value, int):
        return None
    if not value:
        return "its id is empty"
    size = len(value.encode())
    if longest is not None and size > longest:
        return f"its id has {size:,} bytes, and the index takes {longest:,}; hash it"
    if target.ascii_ids and (not value.isascii() or "\0" in value):
        return f"{target.name} takes ids in ASCII without NUL; encode it"
    # Printable text, which most ids are, needs no look at each character.
    if not value.isprintable() and any(
        character < " " and character not in target.id_controls for character in value
    ):
        return f"{target.name} takes no such control characters in ids; encode it"
    return None


def _metadata_problem(target: IndexTarget, metadata: Mapping[str, Any]) -> str | None:
    for name, value in metadata.items():
        if not target.nulls and (value is None or (isinstance(value, list) and None in value)):
            return f"its metadata {name} are null, which {target.name} does not take"
        if isinstance(value, float) and not math.isfinite(value):
            return f"its metadata {name} are NaN or infinite"
    if target.metadata_bytes is not None and metadata:
        size = len(json.dumps(metadata, ensure_ascii=False).encode("utf-8", "replace"))
        if size > target.metadata_bytes:
            return (
                f"its metadata have {size:,} bytes; {target.name} takes {target.metadata_bytes:,}"
            )
    return None


def batches(target: IndexTarget, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut records into requests: start and end of each, none above the target's limits.

    Args:
        target: Its limits.
        sizes: The bytes of each record in a request.
    """
    start = total = 0
    for place, size in enumerate(sizes):
        is_full = place - start == target.max_batch_rows or total + size > target.max_request_bytes
        if place > start and is_full:
            yield start, place
            start, total = place, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)


def send_all(
    target: IndexTarget,
    records: Records,
    sizes: Sequence[int],
    send: Callable[[Records], None],
) -> list[RejectedRecord]:
    """Send records in batches; one that the service refuses is halved until it is a single record.

    Args:
        target: Its limits.
        records: What to send.
        sizes: The bytes of each in a request.
        send: Sends some of them; raises `RequestRefusedError`.

    Returns:
        The records that were refused.

    Raises:
        VectorIndexError: A hundred were: then it is not about single records.
    """
    refused: list[RejectedRecord] = []
    waiting = list(batches(target, sizes))[::-1]
    while waiting:
        start, end = waiting.pop()
        try:
            send(records.part(start, end))
        except RequestRefusedError as error:
            if end - start > 1:
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
                continue
            refused.append(RejectedRecord(records.ids[start], error.reason))
            if len(refused) == _MAX_REFUSED:
                raise VectorIndexError(
                    f"{len(refused)} records were refused, the last {records.ids[start]!r}: "
                    f"{error.reason}"
                ) from None
    return refused
