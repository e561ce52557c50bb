"""An index in Pinecone: one namespace of a serverless index."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from spark_vision.errors import (
    IndexConnectionError,
    InvalidOptionError,
    VectorIndexError,
    in_one_line,
)
from spark_vision.search.extras import import_extra
from spark_vision.search.index_targets import TARGETS, IndexTarget
from spark_vision.search.records import (
    Records,
    accept,
    check_query,
    check_schema,
    check_suits,
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

_Result = TypeVar("_Result")
_PROPERTIES = "properties"
_ENVELOPE_BYTES = 1024
_RECORD_BYTES = 64
# Ids of a fetch stand in the URL, which servers and proxies limit.
_URL_BYTES = 4000
_FETCH_ROWS = 100
_TRANSIENT = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class PineconeIndex(VectorIndex):
    """A namespace of a Pinecone index of dense vectors.

    Its properties are the metadata of one record in a namespace of their own,
    `spark_vision:NAMESPACE`: there they are in nobody's results and counts, they go when the index
    goes, and one request replaces them as a whole. A namespace of records that was emptied is
    loaded again.

    Attributes:
        index: The index's name.
        namespace: The namespace; empty means Pinecone's default one.
        api_key: The key; None means the variable PINECONE_API_KEY.
        metric: cosine or dotproduct; equal for normalised vectors.
        cloud: Where an index that is made runs: aws, gcp or azure.
        region: The region of that cloud.
        host: The index's own address; None asks the control plane for it. With one the index
            exists, and the control plane is not called at all.
        control_host: The control plane; None means PINECONE_CONTROLLER_HOST or Pinecone's own.
        timeout_seconds: The maximum time of one request.
        ready_seconds: The maximum time until an index that is made is ready.
        retry: How a request that failed in a way that may pass is sent again.

    Example:
        >>> index = PineconeIndex("photos", namespace="clip")
        >>> index.metric
        'cosine'
    """

    index: str
    namespace: str = ""
    api_key: str | None = field(default=None, repr=False)
    metric: Literal["cosine", "dotproduct"] = "cosine"
    cloud: str = "aws"
    region: str = "us-east-1"
    host: str | None = None
    control_host: str | None = None
    timeout_seconds: float = 30.0
    ready_seconds: int = 300
    retry: RetryPolicy = field(default=RetryPolicy(), repr=False)

    def __post_init__(self) -> None:
        if self.metric not in ("cosine", "dotproduct"):
            raise InvalidOptionError(f"metric got {self.metric!r}; allowed: cosine, dotproduct")
        for name in ("host", "control_host"):
            if urlsplit(getattr(self, name) or "").username:
                raise InvalidOptionError(f"{name} holds credentials; pass api_key instead")

    @property
    def target(self) -> IndexTarget:
        """What Pinecone accepts."""
        return TARGETS["pinecone"]

    @property
    def single_process(self) -> bool:
        """Any number of processes may write."""
        return False

    def check(self, schema: pa.Schema, dimension: int) -> None:
        """Refuse records that the index could not hold; an emptied one has the same dimension."""
        self._check_columns(schema, dimension)
        if (found := self.describe()) is not None:
            check_suits(self.target, found, schema, dimension=dimension, metric=self.metric)

    def create(self, schema: pa.Schema, dimension: int) -> bool:
        """Make the serverless index, or check that the one that exists suits."""
        self._check_columns(schema, dimension)
        found = self.describe()
        is_made = found is None
        if found is None:
            self._make(dimension)
            found = self._found
        check_suits(self.target, found, schema, dimension=dimension, metric=self.metric)
        return is_made

    def _check_columns(self, schema: pa.Schema, dimension: int) -> None:
        check_schema(self.target, schema, dimension)
        for name in schema.names:
            if name.startswith("$"):
                raise VectorIndexError(f"Pinecone keeps names with $ for itself: rename {name!r}")

    def _make(self, dimension: int) -> None:
        errors = import_extra("pinecone.errors.exceptions", "pinecone")
        # `_values` is the field that the API of vectors addresses.
        vectors = {"type": "dense_vector", "dimension": dimension, "metric": self.metric}
        place = {"deployment_type": "managed", "cloud": self.cloud, "region": self.region}

        def make() -> None:
            try:
                self._control.indexes.create(
                    name=self.index,
                    schema={"fields": {"_values": vectors}},
                    deployment=place,
                    timeout=-1,
                )
            except errors.ConflictError:
                # The answer to an earlier attempt was lost, or another process was first.
                return

        self._call(make)
        end = self.retry.clock() + self.ready_seconds
        while not self._look_up().status.ready:
            if self.retry.clock() >= end:
                raise IndexConnectionError(
                    f"{self._name} is not ready after {self.ready_seconds} seconds; try again later"
                )
            self.retry.sleep(1.0)

    def drop(self) -> None:
        """Remove the records of this namespace and the properties; the index itself stays."""
        if self.describe() is None:
            return
        # First the properties: what is half removed holds no version of the table.
        for namespace in (self._own_namespace, self.namespace):
            self._delete(namespace, delete_all=True)

    def upsert(self, records: pa.Table | pa.RecordBatch) -> UpsertResult:
        """Write records; those that Pinecone cannot hold are reported."""
        good, rejected = accept(self.target, records, self._found, self.metric)
        encode = import_extra("orjson", "pinecone").dumps
        sizes = [
            len(encode(self._record(good, place))) + _RECORD_BYTES for place in range(len(good))
        ]
        limit = self.target.max_request_bytes - _ENVELOPE_BYTES
        refused = send_all(replace(self.target, max_request_bytes=limit), good, sizes, self._send)
        return UpsertResult(len(good) - len(refused), (*rejected, *refused))

    @staticmethod
    def _record(records: Records, place: int) -> dict[str, Any]:
        record = {"id": records.ids[place], "values": records.vectors[place].tolist()}
        if records.metadata[place]:
            record["metadata"] = records.metadata[place]
        return record

    def _send(self, records: Records) -> None:
        vectors = [self._record(records, place) for place in range(len(records))]
        upsert = partial(self._data.upsert, vectors=vectors, namespace=self.namespace)
        self._call(upsert, may_refuse=True)

    def delete(self, ids: Sequence[Id]) -> None:
        """Remove records; ids that are not in the namespace are ignored."""
        texts = [str(each) for each in ids]
        size = self.target.max_batch_rows
        for start in range(0, len(texts), size):
            self._delete(self.namespace, ids=texts[start : start + size])

    def _delete(self, namespace: str, **which: Any) -> None:
        errors = import_extra("pinecone.errors.exceptions", "pinecone")

        def delete() -> None:
            try:
                self._data.delete(namespace=namespace, **which)
            except errors.NotFoundError as error:
                # A namespace is there when it has records.
                if "namespace" not in str(error).lower():
                    raise

        self._call(delete)

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        metadata: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Return the k records nearest to each vector, the nearest first; a request for each."""
        dimension = self._found.dimension
        queries = check_query(self.target, vectors, k, dimension=dimension, metric=self.metric)
        terms = {
            name: {"$in": list(value)} if isinstance(value, (list, tuple)) else {"$eq": value}
            for name, value in (where or {}).items()
        }
        results = []
        for query in queries.tolist():
            answer = self._call(
                partial(
                    self._data.query,
                    vector=query,
                    top_k=k,
                    namespace=self.namespace,
                    filter=terms or None,
                    include_metadata=bool(metadata),
                )
            )
            results.append([self._hit(match, metadata) for match in answer.matches])
        return results

    @staticmethod
    def _hit(match: Any, metadata: Sequence[str]) -> Hit:
        values = match.metadata or {}
        return Hit(
            match.id,
            float(match.score),
            {name: values[name] for name in metadata if name in values},
        )

    def fetch(self, ids: Sequence[Id]) -> dict[Id, np.ndarray]:
        """Return the vectors of those records that the namespace has."""
        found: dict[Id, np.ndarray] = {}
        for part in _fetch_parts([str(each) for each in ids]):
            answer = self._call(partial(self._data.fetch, ids=part, namespace=self.namespace))
            for name, record in answer.vectors.items():
                found[name] = np.asarray(record.values, dtype=np.float32)
        return found

    def count(self) -> int:
        """Return the number of records; Pinecone may be some seconds behind."""
        return self._rows(self._stats(), self.namespace)

    def describe(self) -> IndexDescription | None:
        """Return what the index is; None where it does not exist.

        Raises:
            VectorIndexError: It is no index of dense vectors; somebody else made it.
        """
        model = None if self.host is not None else self._look_up(must_exist=False)
        if model is None and self.host is None:
            return None
        stats = self._stats()
        if model is not None:
            fields_found = [type(kind).__name__ for kind in model.schema.fields.values()]
        else:
            # Of an index that is given by its host, what it says itself.
            is_dense = stats.vector_type in (None, "dense")
            fields_found = ["DenseVectorField" if is_dense else "sparse"]
        if fields_found != ["DenseVectorField"] or stats.dimension is None:
            raise VectorIndexError(
                f"{self._name} was made by somebody else: it has the fields "
                f"{', '.join(fields_found)}, and one of dense vectors is needed; use another index"
            )
        properties: Mapping[str, str] = {}
        # Even where the statistics, which are late, count no records.
        answer = self._call(
            lambda: self._data.fetch(ids=[_PROPERTIES], namespace=self._own_namespace)
        )
        if _PROPERTIES in answer.vectors:
            properties = dict(answer.vectors[_PROPERTIES].metadata or {})
        return IndexDescription(
            name=self._name,
            dimension=stats.dimension,
            metric=stats.metric or self.metric,
            rows=self._rows(stats, self.namespace),
            id_type="string",
            metadata=None,
            properties=properties,
        )

    def write_properties(self, properties: Mapping[str, str]) -> None:
        """Replace the properties, by one request."""
        # Some direction; a vector of zeros is refused.
        vector = [1.0] + [0.0] * (self._found.dimension - 1)
        record = {"id": _PROPERTIES, "values": vector, "metadata": dict(properties)}
        self._call(lambda: self._data.upsert(vectors=[record], namespace=self._own_namespace))

    def close(self) -> None:
        """Close the connections; the next call opens others."""
        for name in ("_data", "_control"):
            if (client := self.__dict__.pop(name, None)) is not None:
                client.close()
        self.__dict__.pop("_found", None)

    def with_credentials(self) -> "PineconeIndex":
        """Return the same index with what it reads from the environment, for another process."""
        control_host = self.control_host or os.environ.get("PINECONE_CONTROLLER_HOST") or None
        return replace(self, api_key=self._key, control_host=control_host)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    # The connections, and the calls over them.

    @property
    def _name(self) -> str:
        return f"Pinecone's {self.index}{self.namespace and '/'}{self.namespace}"

    @property
    def _own_namespace(self) -> str:
        return f"spark_vision:{self.namespace}"

    @property
    def _key(self) -> str:
        if key := self.api_key or os.environ.get("PINECONE_API_KEY"):
            return key
        raise VectorIndexError("Pinecone needs a key: pass api_key, or set PINECONE_API_KEY")

    @cached_property
    def _control(self) -> Any:
        pinecone = import_extra("pinecone", "pinecone")
        config = import_extra("pinecone._internal.config", "pinecone")
        return self._made(
            lambda: pinecone.Pinecone(
                self._key,
                host=self.control_host,
                timeout=self.timeout_seconds,
                retry_config=config.RetryConfig(max_retries=0),
            )
        )

    @cached_property
    def _data(self) -> Any:
        pinecone = import_extra("pinecone", "pinecone")
        config = import_extra("pinecone._internal.config", "pinecone")
        transport = import_extra("pinecone._internal.http_client", "pinecone")
        constants = import_extra("pinecone._internal.constants", "pinecone")
        host = self.host or self._look_up().host
        data = self._made(
            lambda: pinecone.Index(host=host, api_key=self._key, timeout=self.timeout_seconds)
        )
        # The client has no option for it: its own retries would multiply with this package's.
        data._http.close()
        once = replace(data._config, retry_config=config.RetryConfig(max_retries=0))
        data._http = transport.HTTPClient(once, constants.DATA_PLANE_API_VERSION)
        return data

    def _made(self, make: Callable[[], _Result]) -> _Result:
        """Make a client, whose checks of its arguments may refuse them."""
        errors = import_extra("pinecone.errors.exceptions", "pinecone")
        try:
            return make()
        except errors.PineconeError as error:
            raise VectorIndexError(f"{self._name}: {self._reason(error)}") from None

    def _look_up(self, *, must_exist: bool = True) -> Any:
        """Ask the control plane for the index; None where it does not, and need not, exist."""
        errors = import_extra("pinecone.errors.exceptions", "pinecone")
        self.__dict__.pop("_found", None)

        def describe() -> Any:
            try:
                return self._control.indexes.describe(self.index)
            except errors.NotFoundError:
                return None

        model = self._call(describe)
        if model is None and must_exist:
            raise VectorIndexError(f"Pinecone has no index {self.index}; call create first")
        return model

    @cached_property
    def _found(self) -> IndexDescription:
        if (found := self.describe()) is None:
            raise VectorIndexError(f"Pinecone has no index {self.index}; call create first")
        return found

    def _stats(self) -> Any:
        return self._call(lambda: self._data.describe_index_stats())

    @staticmethod
    def _rows(stats: Any, namespace: str) -> int:
        # The default namespace has gone by two names.
        names = [namespace] if namespace else ["", "__default__"]
        found = (stats.namespaces[name] for name in names if name in stats.namespaces)
        return sum(int(each.vector_count) for each in found)

    def _call(self, call: Callable[[], _Result], *, may_refuse: bool = False) -> _Result:
        """Call the client; this package alone decides what is tried again."""
        errors = import_extra("pinecone.errors.exceptions", "pinecone")

        def attempt() -> _Result:
            try:
                return call()
            except errors.PineconeError as error:
                raise self._failure(errors, error) from None

        try:
            reached = "_is_reached" in self.__dict__
            result = self.retry.run(attempt, address=self._name, was_reached=reached)
        except RequestRefusedError as error:
            if may_refuse:
                raise
            raise VectorIndexError(f"{self._name}: {error.reason}") from None
        self.__dict__["_is_reached"] = True
        return result

    def _failure(self, errors: Any, error: Any) -> Exception:
        reason = self._reason(error)
        if isinstance(error, (errors.PineconeConnectionError, errors.PineconeTimeoutError)):
            return TransientError(reason, has_answer=False)
        if isinstance(error, errors.UnauthorizedError):
            return VectorIndexError(
                f"{self._name}: the API key is refused; pass api_key, or set PINECONE_API_KEY"
            )
        if isinstance(error, errors.NotFoundError):
            return VectorIndexError(f"{self._name} does not exist: {reason}")
        if isinstance(error, errors.ApiError):
            if error.status_code in _TRANSIENT or error.status_code >= 500:
                return TransientError(reason, _retry_after(error))
            if error.status_code not in (400, 413, 422):
                return VectorIndexError(f"{self._name}: {reason}")
        return RequestRefusedError(reason)

    def _reason(self, error: Any) -> str:
        return in_one_line(str(error).replace(self._key, "***"))


def _retry_after(error: Any) -> float | None:
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _fetch_parts(ids: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = []
    size = 0
    for each in ids:
        if not parts or size + len(each) > _URL_BYTES or len(parts[-1]) == _FETCH_ROWS:
            parts.append([])
            size = 0
        parts[-1].append(each)
        size += len(each) + len("&ids=")
    return parts
