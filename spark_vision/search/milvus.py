"""An index in Milvus: a collection of a service, or of a local file by Milvus Lite."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
import pyarrow as pa

from spark_vision.errors import InvalidOptionError, VectorIndexError, in_one_line
from spark_vision.images.urls import redact_text
from spark_vision.search.extras import import_extra
from spark_vision.search.index_targets import TARGETS, IndexTarget
from spark_vision.search.records import (
    ID,
    Records,
    accept,
    check_query,
    check_schema,
    check_suits,
    is_text_id,
    metadata_types,
    send_all,
)
from spark_vision.search.retries import RequestRefusedError, RetryPolicy, TransientError
from spark_vision.search.vector_index import (
    Hit,
    Id,
    IndexDescription,
    UpsertResult,
    VectorIndex,
)

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_PREFIX = "spark_vision."
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_MAX_TEXT = 65_535
_MAX_LIST = 4096
_QUERIES_IN_A_REQUEST = 64
_LOAD_SECONDS = 600.0
_FIELDS = {
    "byte": "INT8",
    "short": "INT16",
    "integer": "INT32",
    "long": "INT64",
    "float": "FLOAT",
    "double": "DOUBLE",
    "boolean": "BOOL",
    "string": "VARCHAR",
    "array": "ARRAY",
}
_BUILD = {
    "IVF_FLAT": {"nlist": 1024},
    "HNSW": {"M": 16, "efConstruction": 200},
    "FLAT": {},
}
# What pymilvus puts before a reason when its own time is over.
_CLIENT_PREFIX = re.compile(r"\[\w+\] Retry timeout: [\d.]+s(, message=|, )?")
_BUSY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "RESOURCE_EXHAUSTED")
_DENIED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_RATE_LIMIT, _NO_COLLECTION, _WRONG_TOKEN = 8, 100, 1800
# An illegal argument of Lite; invalid, missing and too large parameters of a service.
_BAD_RECORDS = (6, 1100, 1101, 1102)


@dataclass(frozen=True)
class MilvusIndex(VectorIndex):
    """A Milvus collection with one vector and one id per record.

    Attributes:
        uri: A file that ends with `.db` is Milvus Lite, used by one process at a time;
            `http://host:19530` or `https://...` is a service.
        collection: Its name.
        token: `user:password` or an API key; None means the variable MILVUS_TOKEN.
        database: The database of a service; empty means its default.
        index_type: IVF_FLAT, HNSW or FLAT, for a collection that is made.
        metric: IP or COSINE; equal for normalised vectors.
        build_params: Of the index; None means nlist=1024 for IVF_FLAT, and M=16 and
            efConstruction=200 for HNSW.
        search_params: Of a query; None means nprobe=64 for IVF_FLAT, and ef=64 or k for HNSW.
        dynamic_metadata: Whether a collection that is made takes any metadata as dynamic fields;
            otherwise each column becomes a field of its type.
        id_field: The collection's primary key, VARCHAR or INT64.
        vector_field: The field that holds the vector.
        timeout_seconds: The maximum time of one request.
        retry: How a request that failed in a way that may pass is sent again.

    Example:
        >>> import pyarrow as pa
        >>> index = MilvusIndex("/data/photos.db", "photos")
        >>> index.create(pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32()))]), 768)
        True
    """

    uri: str
    collection: str
    token: str | None = field(default=None, repr=False)
    database: str = ""
    index_type: Literal["IVF_FLAT", "HNSW", "FLAT"] = "IVF_FLAT"
    metric: Literal["IP", "COSINE"] = "IP"
    build_params: Mapping[str, Any] | None = None
    search_params: Mapping[str, Any] | None = None
    dynamic_metadata: bool = False
    id_field: str = "id"
    vector_field: str = "vector"
    timeout_seconds: float = 60.0
    retry: RetryPolicy = field(default=RetryPolicy(), repr=False)

    def __post_init__(self) -> None:
        if self.index_type not in _BUILD:
            raise InvalidOptionError(
                f"index_type got {self.index_type!r}; allowed: {', '.join(_BUILD)}"
            )
        if self.metric not in ("IP", "COSINE"):
            raise InvalidOptionError(f"metric got {self.metric!r}; allowed: IP, COSINE")
        for name in (self.collection, self.id_field, self.vector_field):
            if not _NAME.fullmatch(name):
                raise InvalidOptionError(
                    f"got the name {name!r}; Milvus takes letters, digits and _, no digit first"
                )
        parts = urlsplit(self.uri)
        if not self.single_process and parts.username:
            # What stands in a URI stands in logs.
            given = unquote(parts.netloc.rpartition("@")[0])
            object.__setattr__(self, "token", self.token or given)
            bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
            object.__setattr__(self, "uri", urlunsplit(bare))
        if self.single_process and not self.uri.endswith(".db"):
            raise InvalidOptionError(
                f"uri got {redact_text(self.uri)!r}; pass a file that ends with .db, or http://host:port"
            )

    @property
    def target(self) -> IndexTarget:
        """What Milvus accepts."""
        return TARGETS["milvus"]

    @property
    def single_process(self) -> bool:
        """Whether it is a local file, which one process uses at a time."""
        return urlsplit(self.uri).scheme not in ("http", "https", "tcp")

    def check(self, schema: pa.Schema, dimension: int) -> None:
        """Refuse records that no collection could hold."""
        check_schema(self.target, schema, dimension)
        for name in metadata_types(schema):
            is_field = self.dynamic_metadata or _NAME.fullmatch(name)
            if not is_field or name in (self.id_field, self.vector_field):
                raise VectorIndexError(
                    f"a Milvus field cannot be called {name!r}; rename the column, or pass another "
                    "id_field and vector_field, or dynamic_metadata=True"
                )

    def create(self, schema: pa.Schema, dimension: int) -> bool:
        """Make the collection, or check that the one that exists suits."""
        self.check(schema, dimension)
        found = self.describe()
        index_params = self._index_params(self.index_type, self.metric, self.build_params)
        if found is not None:
            check_suits(self.target, found, schema, dimension=dimension, metric=self.metric)
            if not found.rows and self._index() is None:
                # A collection is made before its index: a kill came in between.
                self._call("create_index", self.collection, index_params)
                self.__dict__.pop("_found", None)
            return False
        names = {} if self.dynamic_metadata else metadata_types(schema)
        milvus = import_extra("pymilvus", "milvus")
        kinds = milvus.DataType
        made = milvus.MilvusClient.create_schema(
            auto_id=False, enable_dynamic_field=self.dynamic_metadata
        )
        if is_text_id(self.target, schema.field(ID).type):
            made.add_field(self.id_field, kinds.VARCHAR, is_primary=True, max_length=_MAX_TEXT)
        else:
            made.add_field(self.id_field, kinds.INT64, is_primary=True)
        made.add_field(self.vector_field, kinds.FLOAT_VECTOR, dim=dimension)
        for name, kind in names.items():
            options = {"max_length": _MAX_TEXT} if kind in ("string", "array") else {}
            if kind == "array":
                options |= {"element_type": kinds.VARCHAR, "max_capacity": _MAX_LIST}
            made.add_field(name, kinds[_FIELDS[kind]], **options)
        # Strong: a search sees what was written before it.
        self._call(
            "create_collection",
            self.collection,
            schema=made,
            index_params=index_params,
            consistency_level="Strong",
        )
        self.__dict__.pop("_found", None)
        return True

    def _index_params(self, kind: str, metric: str, build: Mapping[str, Any] | None) -> Any:
        index = import_extra("pymilvus", "milvus").MilvusClient.prepare_index_params()
        params = dict(_BUILD[kind] if build is None else build)
        if self.single_process:
            # Lite reads them as one value, and pymilvus 3 sends each by itself.
            params = {"params": params}
        index.add_index(self.vector_field, index_type=kind, metric_type=metric, params=params)
        return index

    def drop(self) -> None:
        """Remove the collection, and its properties with it."""
        if self._call("has_collection", self.collection):
            self._call("drop_collection", self.collection)
        self.__dict__.pop("_found", None)

    def upsert(self, records: pa.Table | pa.RecordBatch) -> UpsertResult:
        """Write records; those that Milvus cannot hold are reported."""
        found = self._found
        good, rejected = accept(self.target, records, found, self.metric)
        vector_bytes = 4 * found.dimension
        sizes = [
            vector_bytes + len(str(key)) * 4 + len(json.dumps(metadata))
            for key, metadata in zip(good.ids, good.metadata, strict=True)
        ]
        refused = send_all(self.target, good, sizes, self._send)
        return UpsertResult(len(good) - len(refused), (*rejected, *refused))

    def _send(self, records: Records) -> None:
        rows = [
            {self.id_field: key, self.vector_field: vector} | metadata
            for key, vector, metadata in zip(
                records.ids, records.vectors, records.metadata, strict=True
            )
        ]
        self._call("upsert", self.collection, rows)

    def delete(self, ids: Sequence[Id]) -> None:
        """Remove records; ids that are not in the collection are ignored."""
        for part in _parts(ids, 1000):
            # pymilvus writes ids into a filter without escaping what is in them.
            self._call("delete", self.collection, filter=self._filter(part))

    def _filter(self, ids: Sequence[Id]) -> str:
        return _expression({self.id_field: [e if isinstance(e, str) else int(e) for e in ids]})

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        metadata: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Return the k records nearest to each vector, the nearest first."""
        dimension = self._found.dimension
        queries = check_query(self.target, vectors, k, dimension=dimension, metric=self.metric)
        params = self.search_params
        if params is None:
            params = {"IVF_FLAT": {"nprobe": 64}, "HNSW": {"ef": max(64, k)}}.get(
                self._index_type, {}
            )
        found = []
        for part in _parts(queries, _QUERIES_IN_A_REQUEST):
            found += self._call(
                "search",
                self.collection,
                list(part),
                anns_field=self.vector_field,
                filter=_expression(where),
                limit=k,
                output_fields=list(metadata),
                search_params={"metric_type": self.metric, "params": dict(params)},
            )
        return [[self._hit(each, metadata) for each in hits] for hits in found]

    def _hit(self, found: Mapping[str, Any], metadata: Sequence[str]) -> Hit:
        values = found["entity"]
        taken = {name: _plain(values[name]) for name in metadata if name in values}
        return Hit(found[self.id_field], float(found["distance"]), taken)

    def fetch(self, ids: Sequence[Id]) -> dict[Id, np.ndarray]:
        """Return the vectors of those records that the collection has."""
        found = {}
        self._found  # noqa: B018 - loads it
        for part in _parts(ids, 1000):
            rows = self._call(
                "query",
                self.collection,
                filter=self._filter(part),
                output_fields=[self.id_field, self.vector_field],
            )
            for row in rows:
                found[row[self.id_field]] = np.asarray(row[self.vector_field], dtype=np.float32)
        return found

    def count(self) -> int:
        """Return the number of records."""
        self._found  # noqa: B018 - loads it
        return self._row_count()

    def _row_count(self) -> int:
        rows = self._call("query", self.collection, filter="", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def describe(self) -> IndexDescription | None:
        """Return what the collection is; None where it does not exist.

        Raises:
            VectorIndexError: It is no collection of one vector with an id; somebody else made it.
        """
        if not self._call("has_collection", self.collection):
            return None
        raw = self._call("describe_collection", self.collection)
        by_name = {each["name"]: each for each in raw["fields"]}
        key, vector = by_name.get(self.id_field), by_name.get(self.vector_field)
        if key is None or not key.get("is_primary") or raw.get("auto_id"):
            raise VectorIndexError(self._not_ours(by_name, f"a primary key {self.id_field}"))
        if vector is None or vector["type"].name != "FLOAT_VECTOR":
            raise VectorIndexError(self._not_ours(by_name, f"float vectors {self.vector_field}"))
        others = {n: each for n, each in by_name.items() if each not in (key, vector)}
        spark_names = {milvus: spark for spark, milvus in _FIELDS.items()}
        kinds = {n: spark_names.get(each["type"].name, "?") for n, each in others.items()}
        properties = {
            name.removeprefix(_PREFIX): value
            for name, value in raw.get("properties", {}).items()
            if name.startswith(_PREFIX)
        }
        index = self._index()
        if index is not None:
            self._load()
        return IndexDescription(
            name=f"{self.uri}/{self.collection}",
            dimension=int(vector["params"]["dim"]),
            metric=self.metric if index is None else index["metric_type"],
            rows=0 if index is None else self._row_count(),
            id_type="string" if key["type"].name == "VARCHAR" else "long",
            metadata=None if raw.get("enable_dynamic_field") else kinds,
            properties=properties,
            id_bytes=key["params"].get("max_length"),
        )

    def _not_ours(self, names: Mapping[str, Any], lacking: str) -> str:
        return (
            f"{self.uri}/{self.collection} was made by somebody else and lacks {lacking}; it "
            f"has {', '.join(names)}: pass id_field and vector_field, or another collection"
        )

    def write_properties(self, properties: Mapping[str, str]) -> None:
        """Replace the properties; Milvus keeps them with the collection."""
        raw = self._call("describe_collection", self.collection).get("properties", {})
        named = {f"{_PREFIX}{name}": value for name, value in properties.items()}
        if named:
            self._call("alter_collection_properties", self.collection, properties=named)
        old = [name for name in raw if name.startswith(_PREFIX) and name not in named]
        if old:
            self._call("drop_collection_properties", self.collection, property_keys=old)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if (client := self.__dict__.pop("_client", None)) is not None:
            client.close()
        self.__dict__.pop("_found", None)

    def with_credentials(self) -> "MilvusIndex":
        """Return the same index with its token read here, for a process that lacks the variable."""
        return replace(self, token=self._token)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    # The connection, and the calls over it.

    @property
    def _token(self) -> str | None:
        return None if self.single_process else self.token or os.environ.get("MILVUS_TOKEN") or None

    @cached_property
    def _client(self) -> Any:
        milvus = import_extra("pymilvus", "milvus")
        if self.single_process:
            import_extra("milvus_lite", "milvus")
            if not (folder := Path(self.uri).resolve().parent).is_dir():
                raise VectorIndexError(f"{self.uri}: there is no folder {folder}; make it first")
        # Every failure is raised here with its reason; the client's trace of each would repeat it.
        log = logging.getLogger("pymilvus.decorators")
        if log.level == logging.NOTSET:
            log.setLevel(logging.CRITICAL)

        def connect() -> Any:
            return milvus.MilvusClient(
                self.uri,
                token=self._token or "",
                db_name=self.database,
                timeout=min(5.0, self.timeout_seconds),
                dedicated=True,
            )

        return self._translated(connect, was_reached=False)

    @cached_property
    def _found(self) -> IndexDescription:
        if (found := self.describe()) is None:
            raise VectorIndexError(
                f"{self.uri} has no collection {self.collection}; call create first"
            )
        return found

    @cached_property
    def _index_type(self) -> str:
        return str((self._index() or {}).get("index_type"))

    def _index(self) -> Any | None:
        """Return the index on the vectors; None where an empty collection has none yet."""
        for name in self._call("list_indexes", self.collection, field_name=self.vector_field):
            return self._call("describe_index", self.collection, index_name=name)
        if self._call("get_collection_stats", self.collection)["row_count"]:
            raise VectorIndexError(
                f"{self.uri}/{self.collection} has no index on {self.vector_field}; make one, "
                "or pass another collection"
            )
        return None

    def _load(self) -> None:
        """Load the collection: before, nothing in it can be counted or found."""
        if self._call("get_load_state", self.collection)["state"].name == "Loaded":
            return
        try:
            self._call("load_collection", self.collection, timeout=_LOAD_SECONDS)
        except VectorIndexError as error:
            if not self.single_process:
                raise
            # Lite writes an index in place: one that a kill cut short cannot be read. The records
            # are elsewhere.
            _logger.warning("%s; building the index again", error)
            self._rebuild()

    def _rebuild(self) -> None:
        found: Any = self._index()
        build = found.get("params", {})
        again = self._index_params(found["index_type"], found["metric_type"], build)
        self._call("drop_index", self.collection, found["index_name"])
        self._call("create_index", self.collection, again)
        self._call("load_collection", self.collection, timeout=_LOAD_SECONDS)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the client; what is refused is an error here, and single records are with upsert."""
        call = getattr(self._client, method)
        # Within this time the client reconnects by itself; a request that hangs ends with it.
        options = {"timeout": self.timeout_seconds, "retry_on_rate_limit": False} | options
        try:
            return self._translated(lambda: call(*arguments, **options))
        except RequestRefusedError as error:
            if method == "upsert" and error.is_of_records:
                raise
            message = f"{self.uri}/{self.collection} refuses {method}: {error.reason}"
            raise VectorIndexError(message) from None

    def _translated(self, call: Callable[[], _Result], *, was_reached: bool = True) -> _Result:
        grpc = import_extra("grpc", "milvus")
        milvus = import_extra("pymilvus.exceptions", "milvus")

        def attempt() -> _Result:
            try:
                return call()
            except milvus.MilvusException as error:
                # Of a connection that fails only the cause says why.
                cause = error.__cause__ if "Fail connecting" in error.message else None
                code = cause.code() if isinstance(cause, grpc.RpcError) else error.code
                of_records = isinstance(error, milvus.ParamError | milvus.DataNotMatchException)
                raise self._failure(code, error.message, error.retriable, of_records) from None
            except grpc.RpcError as error:
                raise self._failure(error.code(), str(error.details()), False, False) from None

        return self.retry.run(attempt, address=self.uri, was_reached=was_reached)

    def _failure(self, code: Any, message: str, retriable: bool, of_records: bool) -> Exception:
        reason = _CLIENT_PREFIX.sub("", message)
        if self._token:
            reason = reason.replace(self._token, "***")
        reason = in_one_line(reason)
        status = getattr(code, "name", str(code))
        if status in _DENIED or code == _WRONG_TOKEN:
            return VectorIndexError(
                f"{self.uri} refuses the token; pass token, or set MILVUS_TOKEN"
            )
        if "Open local milvus failed" in message:
            return VectorIndexError(
                f"{self.uri} cannot be opened: another process has it open, or it is no file of "
                "Milvus Lite"
            )
        if code == _NO_COLLECTION:
            return VectorIndexError(f"{self.uri} has no collection {self.collection}")
        if "larger than max" in message:
            return RequestRefusedError(reason)
        if "Fail connecting" in message:
            return TransientError(reason, has_answer=False)
        if retriable or status in _BUSY or code == _RATE_LIMIT:
            return TransientError(reason)
        return RequestRefusedError(reason, is_of_records=of_records or code in _BAD_RECORDS)


def _expression(where: Mapping[str, Any] | None) -> str:
    """A filter in Milvus' language."""
    terms = []
    for name, value in (where or {}).items():
        if not _NAME.fullmatch(name):
            raise VectorIndexError(f"Milvus cannot filter by the name {name!r}")
        values = value if isinstance(value, (list, tuple)) else [value]
        terms.append(f"{name} in {json.dumps(list(values), ensure_ascii=False)}")
    return " and ".join(terms)


def _plain(value: Any) -> Any:
    """A list that pymilvus gives as a container of its own, as a list."""
    return (
        list(value) if not isinstance(value, (str, bytes)) and hasattr(value, "__len__") else value
    )


def _parts(values: Any, size: int) -> list[Any]:
    return [values[start : start + size] for start in range(0, len(values), size)]
