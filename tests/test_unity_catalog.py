"""Statements for Unity Catalog: parsed by two parsers, and their bodies run on pandas batches.

No test runs them in Unity Catalog.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sqlglot
from pyspark.sql import functions as F
from sqlglot import expressions

from encoded_images import encode, photo
from spark_vision import (
    ClipImageTags,
    ClipTextEmbedding,
    ClipVectorTags,
    ImageLimits,
    ImageViTEmbedding,
    InvalidOptionError,
    QwenVLImageUnderstanding,
    caption_image,
    embed_image,
    embed_text,
    tag_vectors,
    unity_catalog_ddl,
)
from spark_vision.cli.statements import split_statements
from spark_vision.errors import InputTypeError

HOSTILE = "it's \"quoted\" $$ $tag$ ${spark.master} \\ \\' \n -- ; /* 图 */"


def parse(ddl):
    tree = sqlglot.parse_one(ddl, dialect="databricks")
    # What it cannot parse becomes a Command.
    assert isinstance(tree, expressions.Create)
    return tree


def body_of(ddl):
    return parse(ddl).expression.this


def run_body(ddl, *batches):
    names = {}
    exec(re.search(r"AS \$\$\n(.*)\n\$\$\Z", ddl, re.DOTALL)[1], names)
    return list(names["compute"](iter(batches)))


@pytest.fixture(scope="module")
def images():
    files = [encode(photo(48 + seed, 40, seed=seed), "JPEG") for seed in range(5)]
    return [*files[:2], None, b"not an image", *files[2:]]


def column(spark, schema, rows, make):
    """What the column function returns, in the order of the rows."""
    frame = spark.createDataFrame([(n, *row) for n, row in enumerate(rows)], f"n int, {schema}")
    return [row.v for row in frame.select("n", make().alias("v")).sort("n").collect()]


def test_a_statement_has_the_clauses_of_a_batch_python_function():
    dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
    ddl = unity_catalog_ddl(dino, "main.vision.embed_image", dependencies=["/Volumes/a/b.whl", "x"])
    tree = parse(ddl)
    assert tree.kind == "FUNCTION"
    assert tree.args["replace"]
    assert tree.this.this.sql() == '"main"."vision"."embed_image"'
    assert [each.sql("databricks") for each in tree.this.expressions] == ["image BINARY"]
    clauses = {type(each): each for each in tree.args["properties"].expressions}
    assert clauses[expressions.ReturnsProperty].this.sql("databricks") == "ARRAY<FLOAT>"
    assert clauses[expressions.LanguageProperty].name == "PYTHON"
    assert clauses[expressions.StabilityProperty].name == "VOLATILE"
    assert clauses[expressions.ParameterStyleProperty].name == "PANDAS"
    assert clauses[expressions.HandlerProperty].name == "compute"
    environment = clauses[expressions.EnviromentProperty].expressions
    given = {each.this.name: each.expression.name for each in environment}
    assert json.loads(given["dependencies"]) == ["/Volumes/a/b.whl", "x"]
    assert given["environment_version"] == "None"
    deterministic = unity_catalog_ddl(dino, "f", deterministic=True)
    assert "\nNOT DETERMINISTIC\n" in ddl
    assert "\nDETERMINISTIC\n" in deterministic


@pytest.mark.parametrize(
    "operator",
    [
        ImageViTEmbedding(pooling="tokens"),
        ClipTextEmbedding(),
        ClipImageTags(tags=["a"]),
        ClipVectorTags(tags=["a"]),
        QwenVLImageUnderstanding(),
    ],
)
def test_sparks_parser_takes_name_parameters_and_return_type(spark, operator):
    head, _, _ = unity_catalog_ddl(operator, "a-b.c.d").partition("LANGUAGE PYTHON")
    parser = spark._jsparkSession.sessionState().sqlParser()
    # Spark itself knows functions of SQL only.
    plan = parser.parsePlan(f"{head} LANGUAGE SQL NOT DETERMINISTIC RETURN NULL").toString()
    assert "UnresolvedIdentifier [a-b, c, d]" in plan
    assert f"{next(iter(operator.value_fields.values()))}, NULL" in plan


def test_a_body_gives_the_vectors_of_embed_image(spark, dino, images):
    ddl = unity_catalog_ddl(dino, "f")
    found = run_body(ddl, pd.Series(images[:3]), pd.Series(images[3:4]), pd.Series(images[4:]))
    assert [len(series) for series in found] == [3, 1, 3]
    expected = column(
        spark, "i binary", [(each,) for each in images], lambda: embed_image("i", dino)
    )
    for vector, other in zip(pd.concat(found), expected, strict=True):
        if other is None:
            assert vector is None
        else:
            assert vector.dtype == np.float32
            np.testing.assert_allclose(vector, other, atol=1e-6)


def test_a_body_of_texts_and_of_vectors(spark, checkpoints):
    clip = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    texts = ["a red circle", None, "a blue square"]
    (found,) = run_body(unity_catalog_ddl(clip, "f"), pd.Series(texts))
    vectors = column(spark, "t string", [(each,) for each in texts], lambda: embed_text("t", clip))
    assert found[1] is vectors[1] is None
    for row in (0, 2):
        np.testing.assert_allclose(found[row], vectors[row], atol=1e-6)

    tagger = clip.convert(ClipVectorTags, tags=["red", "$$ '"])
    (tagged,) = run_body(unity_catalog_ddl(tagger, "f"), found)
    expected = column(
        spark,
        "v array<float>",
        [(each,) for each in vectors],
        lambda: tag_vectors("v", tagger, tagger.tags),
    )
    assert tagged[1] is None
    for row in (0, 2):
        assert [each["tag"] for each in tagged[row]] == [each.tag for each in expected[row]]
        scores = [each.score for each in expected[row]]
        assert [each["score"] for each in tagged[row]] == pytest.approx(scores, abs=1e-5)


def test_a_body_answers_each_rows_prompt_or_the_operators(spark, checkpoints, images):
    qwen = QwenVLImageUnderstanding(
        model_name=str(checkpoints / "qwen"),
        prompt=HOSTILE,
        dtype="float32",
        max_caption_length=8,
        use_flash_attention_2=False,
    )
    prompts = ["How many?", None, "Where?", None, None, HOSTILE, "?"]
    ddl = unity_catalog_ddl(qwen, "f")
    (found,) = run_body(ddl, (pd.Series(images), pd.Series(prompts)))
    rows = list(zip(images, prompts, strict=True))
    expected = column(
        spark, "i binary, p string", rows, lambda: caption_image("i", qwen, F.col("p"))
    )
    assert found.tolist() == expected
    assert found[5] != found[6]


@pytest.mark.parametrize(
    "operator",
    [
        QwenVLImageUnderstanding(prompt=HOSTILE),
        ClipImageTags(tags=[HOSTILE, "$", "\\"], template="{} $$"),
        ImageViTEmbedding(
            model_name="a$$b",
            limits=ImageLimits(max_bytes=7),
            allow_paths=["/data/it's $$"],
            image_processor_kwargs={"size": {"height": 4, "width": 4}},
        ),
    ],
)
def test_what_an_operator_holds_stays_in_its_string(operator):
    dependency = f"/Volumes/{HOSTILE}.whl"
    ddl = unity_catalog_ddl(operator, "main.vision.f", dependencies=[dependency])
    assert split_statements(f"{ddl}; SELECT 1") == [ddl, "SELECT 1"]
    assert ddl.count("$") == 4
    names = {}
    exec(body_of(ddl), names)
    assert names["operator"] == operator
    clauses = parse(ddl).args["properties"].expressions
    (environment,) = [each for each in clauses if isinstance(each, expressions.EnviromentProperty)]
    assert json.loads(environment.expressions[0].expression.name) == [dependency]


def test_what_cannot_be_expressed_is_refused(dino):
    with pytest.raises(InvalidOptionError, match=r"ImageViTEmbedding\.storage_options is a secret"):
        unity_catalog_ddl(replace(dino, storage_options={"key": "hunter2"}), "f")
    for name in ("", "a.b.c.d", "a..b", "a`b", "f; DROP", "f(", "$$"):
        with pytest.raises(InvalidOptionError, match="up to three parts"):
            unity_catalog_ddl(dino, name)
    with pytest.raises(InvalidOptionError, match="a list of strings"):
        unity_catalog_ddl(dino, "f", dependencies="spark-vision")
    with pytest.raises(InputTypeError, match="got str"):
        unity_catalog_ddl("dinov2", "f")

    class Own(ImageViTEmbedding):
        pass

    with pytest.raises(InvalidOptionError, match="got Own; allowed: ImageViTEmbedding"):
        unity_catalog_ddl(Own(), "f")
