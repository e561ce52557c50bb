"""Other engines read a table: delta-rs, Polars and Daft see the rows that Spark sees."""

import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from encoded_images import encode, photo
from spark_vision import ClipImageEmbedding, write_vision_columns

KEPT = ["path", "length", "embedding", "embedding_status", "clip", "clip_status"]


@pytest.fixture
def filled(spark, read_photos, photos, dino, checkpoints, table):
    """A table that had all kinds of writes: rows appended, changed and deleted, a column added."""
    clip = ClipImageEmbedding(model_name=str(checkpoints / "clip"))

    def write(columns, **options):
        write_vision_columns(read_photos(), table, ["path"], columns, keep=["length"], **options)

    write({"embedding": dino}, rows_per_commit=3)
    write({"embedding": dino, "clip": clip}, rows_per_commit=3)
    changed, gone, *_ = sorted(photos.glob("*.jpg"))
    changed.write_bytes(encode(photo(50, 40, seed=99), "JPEG"))
    gone.unlink()
    write({"embedding": dino, "clip": clip}, delete_missing=True)
    return spark.read.format("delta").load(table)


def rows_of(columns):
    """Rows in the order of their paths, from lists by column."""
    return sorted(zip(*(columns[name] for name in KEPT), strict=True))


def test_other_engines_read_the_rows_that_spark_reads(filled, table):
    expected = sorted(tuple(row[name] for name in KEPT) for row in filled.collect())
    assert len({row[3] for row in expected}) > 1
    assert rows_of(DeltaTable(table).to_pyarrow_table(columns=KEPT).to_pydict()) == expected
    assert rows_of(polars.read_delta(table, columns=KEPT).to_dict(as_series=False)) == expected


@pytest.mark.slow
def test_daft_reads_the_rows_that_spark_reads(filled, table):
    # It needs an older pyarrow than constraints.txt has; `make matrix CELL=lowest` has both.
    daft = pytest.importorskip("daft")
    expected = sorted(tuple(row[name] for name in KEPT) for row in filled.collect())
    assert rows_of(daft.read_deltalake(table).select(*KEPT).to_pydict()) == expected


@pytest.mark.slow
def test_other_engines_read_the_changes_that_spark_reads(spark, filled, table):
    feed = spark.read.format("delta").option("readChangeFeed", True).option("startingVersion", 0)
    names = ["path", "embedding", "_change_type", "_commit_version"]
    expected = sorted(map(tuple, feed.load(table).select(*names).collect()), key=repr)
    assert {row[2] for row in expected} == {
        "insert", "update_preimage", "update_postimage", "delete",
    }  # fmt: skip
    changes = DeltaTable(table).load_cdf(starting_version=0, columns=names)
    columns = pa.table(changes.read_all()).to_pydict()
    found = zip(*(columns[name] for name in names), strict=True)
    assert sorted(found, key=repr) == expected
