"""Operators as SQL functions, in a classic session and over Spark Connect."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image
from pyspark.errors import AnalysisException

from oracles import draw_pictures
from spark_vision import ClipTextEmbedding, ImageViTEmbedding, register_functions
from spark_vision.errors import InputTypeError, InvalidOptionError


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


REFUSALS = re.findall(
    r"^\| `(.+)` \| `([A-Z_.]+)` \| `(.+)` \| (refused|allowed) \|$",
    (Path(__file__).parents[1] / "docs" / "functions.md").read_text(),
    re.MULTILINE,
)


@pytest.fixture
def tables(spark, folder):
    """The tables that the documentation names."""
    files = spark.read.format("binaryFile").load(str(folder)).select("path", "content")
    files.write.format("delta").saveAsTable("photos")
    vectors = files.selectExpr("path", "content", "CAST(NULL AS ARRAY<FLOAT>) AS v")
    vectors.write.format("delta").saveAsTable("vectors")
    yield
    for name in ("photos", "vectors"):
        spark.sql(f"DROP TABLE {name}")
    spark.sql("DROP VIEW IF EXISTS embedded")


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


def test_spark_connect_runs_columns_sql_a_write_searches_and_syncs(folder, checkpoints, tmp_path):
    table = str(tmp_path / "vectors")
    script = f"""
        from pyspark.sql import SparkSession, functions as F
        from quick_spark import quickly
        from spark_vision import (
            ImageViTEmbedding, PineconeIndex, configure, embed_image, find_duplicates,
            group_duplicates, register_functions, search_images, sync_index, write_vision_columns,
        )
        from memory_index import MemoryIndex
        from pinecone_server import serve_pinecone

        spark = configure(quickly(SparkSession.builder.remote("local[2]"))).getOrCreate()
        assert type(spark).__module__.startswith("pyspark.sql.connect")
        dino = ImageViTEmbedding(model_name={str(checkpoints / "dinov2")!r})
        register_functions(spark, {{"embed_image": dino}}, with_status=True)
        files = spark.read.format("binaryFile").load({str(folder)!r})
        files.createOrReplaceTempView("pictures")
        by_sql = spark.sql("SELECT path, embed_image(content) AS r FROM pictures").collect()
        print(sorted(row.r.status for row in by_sql))
        by_column = files.select("path", embed_image("content", dino).alias("v")).collect()
        vectors = {{row.path: row.v for row in by_column}}
        assert all(vectors[row.path] == row.r.embedding for row in by_sql)
        for computed in (len(vectors), 0):
            result = write_vision_columns(files, {table!r}, ["path"], {{"embedding": dino}})
            assert result.computed_rows == computed
        rows = spark.read.format("delta").load({table!r}).collect()
        assert {{row.path: row.embedding for row in rows}} == vectors
        path, vector = next((path, each) for path, each in vectors.items() if each)
        found = search_images({table!r}, "embedding", vector, k=2).collect()
        assert [row.rank for row in found] == [1, 2]
        assert found[0].path == path
        stored = spark.read.format("delta").load({table!r}).select("path", "embedding")
        rows = stored.union(stored.withColumn("path", F.concat("path", F.lit(".copy"))))
        pairs = find_duplicates(rows, "embedding", 0.9999, keys=["path"]).collect()
        copied = {{path for path, each in vectors.items() if each}}
        assert copied == {{row.path_a for row in pairs if row.path_b == row.path_a + ".copy"}}
        groups = group_duplicates(rows, "embedding", 0.9999, keys=["path"]).collect()
        assert {{row.path for row in groups}} == copied | {{path + ".copy" for path in copied}}
        with serve_pinecone() as server:
            # One is written by the driver, and one by executors.
            service = PineconeIndex("p", api_key=server.api_key, control_host=server.url)
            for index in (MemoryIndex(), service):
                assert sync_index({table!r}, "embedding", index).written_rows == len(copied)
                spark.sql("DELETE FROM delta.`{table}` WHERE path = '" + copied.pop() + "'")
                assert sync_index({table!r}, "embedding", index).deleted_rows == 1
                assert index.fetch(list(vectors)).keys() == copied
            service.close()
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
