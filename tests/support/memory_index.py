"""A third target in one file: an index in memory, searched exactly by NumPy; the tests' oracle."""

import numpy as np

from spark_vision.errors import VectorIndexError
from spark_vision.search.index_targets import IndexTarget
from spark_vision.search.records import (
    ID,
    accept,
    check_query,
    check_schema,
    check_suits,
    is_text_id,
    metadata_types,
)
from spark_vision.search.vector_index import Hit, IndexDescription, UpsertResult

MEMORY = IndexTarget(
    name="memory",
    dimensions=(1, 4096),
    ids=("integer", "long", "string"),
    metadata=("string", "boolean", "long", "double", "array"),
    id_bytes=100,
    metadata_bytes=1000,
)


class MemoryIndex:
    target = MEMORY
    single_process = True

    def __init__(self, metric="cosine"):
        self.metric = metric
        self.drop()

    def check(self, schema, dimension):
        check_schema(self.target, schema, dimension)

    def create(self, schema, dimension):
        self.check(schema, dimension)
        if self.made is not None:
            check_suits(
                self.target, self.describe(), schema, dimension=dimension, metric=self.metric
            )
            return False
        id_type = "string" if is_text_id(self.target, schema.field(ID).type) else "long"
        self.made = (dimension, id_type, metadata_types(schema))
        return True

    def drop(self):
        self.made = None
        self.records = {}
        self.properties = {}

    def found(self):
        if self.made is None:
            raise VectorIndexError("there is no index; call create first")
        return self.describe()

    def upsert(self, records):
        good, rejected = accept(self.target, records, self.found(), self.metric)
        for key, vector, metadata in zip(good.ids, good.vectors, good.metadata, strict=True):
            self.records[key] = (vector, metadata)
        return UpsertResult(len(good), tuple(rejected))

    def delete(self, ids):
        for each in ids:
            self.records.pop(each, None)

    def search(self, vectors, k, *, metadata=(), where=None):
        queries = check_query(
            self.target, vectors, k, dimension=self.found().dimension, metric=self.metric
        )
        kept = [key for key, (_, values) in self.records.items() if has(values, where or {})]
        stored = np.array([self.records[key][0] for key in kept]).reshape(-1, queries.shape[1])
        scores = unit(queries) @ unit(stored).T if self.metric == "cosine" else queries @ stored.T
        results = []
        for row in scores:
            best = np.argsort(-row, kind="stable")[:k]
            results.append([self.hit(kept[place], row[place], metadata) for place in best])
        return results

    def hit(self, key, score, metadata):
        return Hit(key, float(score), {name: self.records[key][1][name] for name in metadata})

    def fetch(self, ids):
        return {each: self.records[each][0] for each in ids if each in self.records}

    def count(self):
        return len(self.records)

    def describe(self):
        if self.made is None:
            return None
        dimension, id_type, types = self.made
        return IndexDescription(
            "memory", dimension, self.metric, self.count(), id_type, types, dict(self.properties)
        )

    def write_properties(self, properties):
        self.properties = dict(properties)

    def with_credentials(self):
        return self

    def close(self):
        pass


def has(values, where):
    return all(
        values[name] in (term if isinstance(term, list) else [term]) for name, term in where.items()
    )


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
