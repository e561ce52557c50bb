"""A table and an index give the nearest rows, with captions and values; each says what it lacks."""

import json

import numpy as np
import pytest

from memory_index import MemoryIndex
from scene_gallery import fill
from spark_vision.errors import InvalidOptionError, TableError, VectorIndexError
from spark_vision.search_page.gallery_source import GalleryColumns
from spark_vision.search_page.index_gallery import IndexGallery
from spark_vision.search_page.spark_gallery import SparkGallery

COLUMNS = GalleryColumns(caption="caption", filters=("objects",))


def unit(numbers):
    vectors = np.array(numbers, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def table(spark, scenes, tmp_path_factory):
    """The scenes as a table, with the properties that a write gives it."""
    place = str(tmp_path_factory.mktemp("tables") / "scenes")
    renamed = scenes.records.rename_columns(["path", "clip", "caption", "objects"])
    spark.createDataFrame(renamed).coalesce(1).write.format("delta").save(place)
    given = ", ".join(
        f"'{name}' = {json.dumps(value)}"
        for name, value in scenes.properties.items()
        if name.startswith("spark_vision.")
    )
    spark.sql(f"ALTER TABLE delta.`{place}` SET TBLPROPERTIES ({given})")
    return place


@pytest.fixture(params=["index", "table"])
def gallery(request):
    if request.param == "index":
        return request.getfixturevalue("source")
    return SparkGallery(
        request.getfixturevalue("spark"), request.getfixturevalue("table"), "clip", COLUMNS
    )


@pytest.mark.parametrize("where", [{}, {"objects": "2"}])
def test_the_nearest_rows_come_first(gallery, scenes, where):
    rows = [
        row
        for row in scenes.records.to_pylist()
        if not where or str(row["objects"]) == where["objects"]
    ]
    query = unit(np.random.default_rng(0).standard_normal(len(rows[0]["vector"])))
    scores = unit([row["vector"] for row in rows]) @ query
    best = np.argsort(-scores, kind="stable")[:6]
    found = gallery.search(query, 6, where)
    assert [each.title for each in found] == [rows[place]["id"] for place in best]
    assert [each.score for each in found] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert [each.caption for each in found] == [rows[place]["caption"] for place in best]
    assert [each.values for each in found] == [
        {"objects": str(rows[place]["objects"])} for place in best
    ]
    assert all(each.address == each.title for each in found)
    vector = gallery.vector_of(found[0].id)
    np.testing.assert_allclose(unit(vector), unit(rows[best[0]]["vector"]), atol=1e-6)


def test_a_tables_filter_lists_its_values(spark, table):
    gallery = SparkGallery(spark, table, "clip", COLUMNS)
    assert gallery.filters == {"objects": ["1", "2", "3", "9"]}
    assert gallery.vector_of(("no such path",)) is None


@pytest.mark.parametrize(
    ("column", "columns", "said"),
    [
        ("dino", COLUMNS, "no column 'dino' of vectors"),
        ("clip", GalleryColumns(caption="title"), "no column 'title'; it has path"),
        ("clip", GalleryColumns(image="objects"), "objects of .* has the type bigint"),
    ],
)
def test_a_table_without_a_column_is_refused(spark, table, column, columns, said):
    with pytest.raises(TableError, match=said):
        SparkGallery(spark, table, column, columns)


@pytest.mark.parametrize("table", ["/data/scenes_table", "file:///data/scenes_table", None])
def test_an_index_of_the_named_table_is_taken(index, table):
    gallery = IndexGallery(index, COLUMNS, table, "clip")
    assert gallery.name == "/data/scenes_table"
    assert gallery.model.keys == ["path"]


@pytest.mark.parametrize(
    ("columns", "table", "column", "said"),
    [
        (COLUMNS, "/data/other", None, "filled from the table /data/scenes_table"),
        (COLUMNS, None, "dino", "filled from the column clip"),
        (
            GalleryColumns(filters=("year",)),
            None,
            None,
            "no column 'year'; it has caption",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_refused(index, columns, table, column, said):
    with pytest.raises(VectorIndexError, match=said):
        IndexGallery(index, columns, table, column)


def test_a_tables_name_is_compared_without_quotes(scenes):
    named = fill(MemoryIndex(), scenes)
    named.write_properties(scenes.properties | {"table": "`main`.`photos`"})
    assert IndexGallery(named, COLUMNS, "main.photos").name == "main.photos"


def test_an_index_that_no_table_filled_is_refused(scenes):
    with pytest.raises(VectorIndexError, match="no such index"):
        IndexGallery(MemoryIndex(), COLUMNS)
    unnamed = fill(MemoryIndex(), scenes)
    unnamed.write_properties({})
    with pytest.raises(VectorIndexError, match="does not say which table"):
        IndexGallery(unnamed, COLUMNS)


def test_a_filter_that_is_no_number_is_refused(source):
    with pytest.raises(InvalidOptionError, match="objects got 'two'; allowed: a number"):
        source.search(np.ones(4, np.float32), 3, {"objects": "two"})
