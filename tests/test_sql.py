"""Operators as SQL functions, in all places where the documentation says that they work."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image
from pyspark.errors import AnalysisException

from documented_places import DOCS
from oracles import draw_pictures
from spark_vision import ClipTextEmbedding, ImageViTEmbedding, embed_image, register_functions
from spark_vision.errors import InputTypeError, InvalidOptionError


@pytest.fixture
def spark(spark):
    """A session of its own: other tests have views and functions by the documented names."""
    return spark.newSession()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(draw_pictures(6)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    (folder / "bad.png").write_text("not an image")
    return folder


def test_sql_computes_each_row_once(spark, folder, checkpoints, count_forwards):
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    register_functions(spark, {"dino_vector": dino})
    spark.read.format("binaryFile").load(str(folder)).createOrReplaceTempView("pictures")
    rows = spark.sql(
        "SELECT path, v, size(v) AS length FROM "
        "(SELECT path, dino_vector(content) AS v FROM pictures) WHERE v IS NOT NULL"
    ).collect()
    assert len(rows) == 6
    assert {row.length for row in rows} == {48}
    assert count_forwards() == 6


def test_any_name_serves_any_operator_with_status(spark, checkpoints):
    clip = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    names = ("words", "spark", "with_status", "operators")
    register_functions(spark, dict.fromkeys(names, clip), with_status=True)
    for name in names:
        (row,) = spark.sql(f"SELECT {name}('a red circle') AS r").collect()
        assert row.r.status == "ok"
        assert len(row.r.embedding) > 0


def test_placements_are_functions_only_where_asked_for(spark, checkpoints):
    clip = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    register_functions(spark, {"words_alone": clip})
    assert spark.catalog.functionExists("words_alone")
    assert not spark.catalog.functionExists("words_alone_placement")
    register_functions(spark, {"words_placed": clip}, with_placement=True)
    (row,) = spark.sql("SELECT words_placed_placement('a red circle') AS p").collect()
    assert row.p.device == "cpu"


PAGE = (DOCS / "functions.md").read_text()
REFUSALS = re.findall(
    r"^\| `(.+)` \| `([A-Z_.]+)` \| `(.+)` \| (refused|allowed) \|$", PAGE, re.MULTILINE
)
STATEMENTS = dict(re.findall(r"^\| ([^|]+) \| `([^`]*embed_image[^`]*)` \|$", PAGE, re.MULTILINE))


@pytest.fixture
def tables(spark, folder):
    """The tables that the documentation names."""
    files = spark.read.format("binaryFile").load(str(folder)).select("path", "content")
    files.write.format("delta").saveAsTable("photos")
    vectors = files.selectExpr("path", "content", "CAST(NULL AS ARRAY<FLOAT>) AS v")
    vectors.write.format("delta").saveAsTable("vectors")
    yield
    for name in ("photos", "vectors", "made"):
        spark.sql(f"DROP TABLE IF EXISTS {name}")


# What reads the result of a statement that returns no rows.
RESULTS = {
    "`INSERT`": "SELECT path, v FROM vectors WHERE v IS NOT NULL",
    "`CREATE TABLE … AS`": "SELECT path, v FROM made",
    "temporary views": "SELECT path, v FROM embedded WHERE v[0] IS NOT NULL",
    "temporary SQL functions": "SELECT path, dimension(content) FROM photos",
    "the source of `MERGE`": "SELECT path, v FROM vectors",
    "the values of `MERGE`": "SELECT path, v FROM vectors",
}


@pytest.fixture
def vectors(spark, tables, checkpoints):
    """The vectors of all photos by the column function, by path; None for the one that is none."""
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    register_functions(spark, {"embed_image": dino})
    rows = spark.table("photos").select("path", embed_image("content", dino).alias("v")).collect()
    return {row.path: row.v for row in sorted(rows)}


def expected_in(place, vectors):
    """What a statement of the documentation gives, computed from the vectors."""
    embedded = {path: vector for path, vector in vectors.items() if vector}
    by_first = sorted(embedded, key=lambda path: embedded[path][0], reverse=True)
    by_first += vectors.keys() - embedded
    given = {
        "`WHERE`": [(path,) for path in embedded],
        "`GROUP BY`": [(False, 6), (True, 1)],
        "`ORDER BY`": [(path,) for path in by_first],
        "`ORDER BY` with `LIMIT`": [(path,) for path in by_first[:3]],
        "windows": [(path, 7 - by_first.index(path)) for path in vectors],
        "`LATERAL VIEW`": [(path, number) for path in embedded for number in embedded[path]],
        "temporary SQL functions": [
            (path, len(embedded.get(path, ())) or None) for path in vectors
        ],
        "`INSERT`": list(embedded.items()),
        "temporary views": list(embedded.items()),
    }
    return given.get(place, list(vectors.items()))


def assert_same(rows, expected):
    assert len(rows) == len(expected)
    for row, (path, *values) in zip(rows, expected, strict=True):
        assert row[0] == path
        assert list(row[1:]) == [value and pytest.approx(value, abs=1e-5) for value in values]


@pytest.mark.parametrize("place", [place for place in STATEMENTS if place != "streams"])
def test_the_functions_work_where_the_documentation_says(spark, vectors, place, count_forwards):
    assert len(STATEMENTS) == 13
    before = count_forwards()
    rows = spark.sql(STATEMENTS[place]).collect()
    if place in RESULTS:
        rows = spark.sql(RESULTS[place]).collect()
    if "`ORDER BY`" not in place:
        rows.sort(key=lambda row: row[0])
    assert_same(rows, expected_in(place, vectors))
    # Spark samples rows before it sorts them.
    assert count_forwards() - before == (12 if place == "`ORDER BY`" else 6)


def test_the_functions_work_on_streams(spark, folder, vectors, tmp_path, count_forwards):
    before = count_forwards()
    schema = spark.read.format("binaryFile").load(str(folder)).schema
    files = spark.readStream.format("binaryFile").schema(schema).load(str(folder))
    files.createOrReplaceTempView("arriving")
    writer = spark.sql(STATEMENTS["streams"]).writeStream.format("delta")
    writer = writer.option("checkpointLocation", str(tmp_path / "checkpoint"))
    writer.trigger(availableNow=True).start(str(tmp_path / "streamed")).awaitTermination()
    rows = spark.read.format("delta").load(str(tmp_path / "streamed")).collect()
    assert_same(sorted(rows), expected_in("streams", vectors))
    assert count_forwards() - before == 6


def test_the_refusals_are_on_the_page_for_troubleshooting():
    page = (DOCS / "troubleshooting.md").read_text()
    assert [condition for _, condition, *_ in REFUSALS if f'| "{condition}" |' not in page] == []


def test_what_is_refused_and_its_way_round_are_as_documented(spark, tables, checkpoints):
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    assert len(REFUSALS) == 7
    for deterministic in (False, True):
        register_functions(spark, {"embed_image": dino}, deterministic=deterministic)
        for refused, condition, instead, by_deterministic in REFUSALS:
            if deterministic and by_deterministic == "allowed":
                spark.sql(refused).collect()
                continue
            with pytest.raises(AnalysisException) as raised:
                spark.sql(refused).collect()
            assert raised.value.getCondition() == condition
            spark.sql(instead.replace("CREATE TEMP", "CREATE OR REPLACE TEMP")).collect()


def test_bad_registrations_are_refused_on_the_driver(spark, checkpoints):
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    with pytest.raises(InvalidOptionError, match="embed-image"):
        register_functions(spark, {"embed-image": dino})
    with pytest.raises(InvalidOptionError, match="no operator"):
        register_functions(spark, {})
    with pytest.raises(InputTypeError, match="got ImageViTEmbedding; allowed: a mapping"):
        register_functions(spark, dino)
    with pytest.raises(InvalidOptionError, match="'Embed' and 'embed'"):
        register_functions(spark, {"Embed": dino, "embed": dino})
    with pytest.raises(InvalidOptionError, match="'a_placement'"):
        register_functions(spark, {"a": dino, "a_placement": dino}, with_placement=True)
    with pytest.raises(InputTypeError, match=r"write ImageViTEmbedding\(\.\.\.\)"):
        register_functions(spark, {"embed_image": ImageViTEmbedding})
    with pytest.raises(InputTypeError, match="got str"):
        register_functions(spark, {"embed_image": "dinov2"})


@pytest.mark.slow
def test_a_connect_session_computes_by_sql_and_column_and_fills_a_table(
    folder, checkpoints, tmp_path
):
    # What else it does is in test_both_sessions.py, which takes minutes.
    table = str(tmp_path / "vectors")
    script = f"""
        from pyspark.sql import SparkSession
        from quick_spark import quickly
        from spark_vision import (
            ImageViTEmbedding, configure, embed_image, register_functions, search_images,
            write_vision_columns,
        )

        spark = configure(quickly(SparkSession.builder.remote("local[2]"))).getOrCreate()
        assert type(spark).__module__.startswith("pyspark.sql.connect")
        dino = ImageViTEmbedding(model_name={str(checkpoints / "dinov2")!r})
        register_functions(spark, {{"embed_image": dino}}, with_status=True)
        files = spark.read.format("binaryFile").load({str(folder)!r})
        files.createOrReplaceTempView("pictures")
        by_sql = spark.sql("SELECT path, embed_image(content) AS r FROM pictures").collect()
        by_column = files.select("path", embed_image("content", dino).alias("v")).collect()
        vectors = {{row.path: row.v for row in by_column}}
        assert all(vectors[row.path] == row.r.embedding for row in by_sql)
        for computed in (len(vectors), 0):
            result = write_vision_columns(files, {table!r}, ["path"], {{"embedding": dino}})
            assert result.computed_rows == computed
        rows = spark.read.format("delta").load({table!r}).collect()
        assert {{row.path: row.embedding for row in rows}} == vectors
        path, vector = next((path, each) for path, each in vectors.items() if each)
        assert search_images({table!r}, "embedding", vector, k=1).head().path == path
        print(sorted(row.r.status for row in by_sql))
        spark.stop()
    """
    environment = {name: value for name, value in os.environ.items() if "PYSPARK" not in name}
    support = str(Path(__file__).parent / "support")
    environment["PYTHONPATH"] = os.pathsep.join([support, environment.get("PYTHONPATH", "")])
    environment["SPARK_TESTING"] = "1"  # Spark's own switch for a server on any free port
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith(str(["not_an_image"] + ["ok"] * 6))
