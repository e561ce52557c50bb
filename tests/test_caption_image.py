"""`caption_image` as a column and in SQL, over real Spark."""

import numpy as np
import pytest
import torch
from PIL import Image
from pyspark.errors import PythonException
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, StringType, StructField, StructType

from caption_oracle import caption
from oracles import draw_pictures
from spark_vision import (
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
    caption_image,
    model_placement,
    register_functions,
)
from spark_vision.demo import checkpoint_path
from spark_vision.demo.rendering import render
from spark_vision.demo.scenes import draw_scenes
from spark_vision.errors import InputTypeError, InvalidOptionError

LENGTH = 10
COUNT = 6
ASKED = ["What is it?", "x", " ", "图里有几个人?", None, "y"]


@pytest.fixture(scope="module")
def pictures():
    sizes = [(60, 80), (120, 40), (60, 80), (40, 40), (30, 150), (90, 90)]
    return [draw_pictures(1, *size, seed=seed)[0] for seed, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def qwen(checkpoints):
    return QwenVLImageUnderstanding(
        model_name=str(checkpoints / "qwen"), dtype="float32", max_caption_length=LENGTH
    )


@pytest.fixture(scope="module")
def images(spark, folder):
    prompts = spark.createDataFrame(list(enumerate(ASKED)), "number int, asked string")
    files = spark.read.format("binaryFile").load(str(folder))
    numbered = files.withColumn("number", F.regexp_extract("path", r"(\d+).png", 1).cast("int"))
    return numbered.join(prompts, "number").cache()


@pytest.fixture(scope="module")
def true(qwen, pictures):
    """Captions of the pictures by transformers, row by row, for one prompt or for one each."""

    def write(prompts):
        asked = prompts if isinstance(prompts, list) else [prompts] * COUNT
        return [
            caption(
                qwen.model_name, picture, prompt if (prompt or "").strip() else qwen.prompt, LENGTH
            )
            for picture, prompt in zip(pictures, asked, strict=True)
        ]

    return write


def collect(rows, column):
    return [row[0] for row in rows.select(column.alias("c"), "number").orderBy("number").collect()]


def test_captions_are_those_of_transformers_however_spark_cuts_the_rows(images, qwen, true):
    assert collect(images, caption_image("content", qwen)) == true(None)
    for parts in (1, 4):
        cut = images.repartition(parts)
        assert collect(cut, caption_image("content", qwen, F.col("asked"))) == true(ASKED)
    assert collect(images, caption_image(F.col("content"), qwen, "x")) == true("x")


def test_a_trained_checkpoint_says_what_it_says_to_transformers(spark, tmp_path):
    random = np.random.default_rng(5)
    prompts = ["Describe this image.", "图里有几个物体?", "Where is it?", "描述图片。"]
    rows = []
    for number, scene in enumerate(draw_scenes(10, seed=77, split="test")):
        scene_file = tmp_path / f"{number}.png"
        render(scene, random).image.save(scene_file)
        rows.append((number, scene_file.read_bytes(), prompts[number % len(prompts)]))
    operator = QwenVLImageUnderstanding(
        model_name=str(checkpoint_path("qwen2_5_vl")), dtype="float32", max_caption_length=40
    )
    true = [
        caption(operator.model_name, read_png(tmp_path / f"{number}.png"), asked, 40)
        for number, _, asked in rows
    ]
    assert len(set(true)) > len(prompts)
    frame = spark.createDataFrame(rows, "number int, content binary, asked string")
    for parts in (1, 3):
        cut = frame.repartition(parts)
        assert collect(cut, caption_image("content", operator, F.col("asked"))) == true


def read_png(file):
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def test_the_pandas_function_gives_what_the_arrow_function_gives(images, qwen, true, monkeypatch):
    monkeypatch.delattr(F, "arrow_udf", raising=False)
    row = F.struct("path", "content")
    assert collect(images, caption_image(row, qwen, F.col("asked"))) == true(ASKED)
    rows = collect(images, caption_image("content", qwen, with_status=True))
    assert [each.caption for each in rows] == true(None)


def test_status_says_what_became_of_a_row(images, qwen):
    silent = QwenVLImageUnderstanding(
        model_name=qwen.model_name, prompt=None, dtype="float32", max_caption_length=1
    )
    frame = images.select(
        "number", caption_image("content", silent, F.col("asked"), with_status=True).alias("c")
    )
    fields = {"caption": StringType(), "status": StringType(), "error": StringType()}
    fields["truncated"] = BooleanType()
    assert frame.schema["c"].dataType == StructType(
        [StructField(name, kind) for name, kind in fields.items()]
    )
    rows = [row.c for row in frame.orderBy("number").collect()]
    assert [row.status for row in rows] == ["ok", "ok", "bad_prompt", "ok", "bad_prompt", "ok"]
    assert {row.truncated for row in rows if row.status == "ok"} == {True}


def test_sql_takes_one_argument_or_two(spark, images, qwen, true):
    register_functions(spark, {"caption_image": qwen})
    images.createOrReplaceTempView("pictures")
    rows = spark.sql(
        "SELECT caption_image(content), caption_image(content, 'x'), caption_image(content, asked) "
        "FROM pictures ORDER BY number"
    ).collect()
    assert [row[0] for row in rows] == true(None)
    assert [row[1] for row in rows] == true("x")
    assert [row[2] for row in rows] == true(ASKED)


def test_a_row_without_any_prompt_reaches_no_model(images, qwen):
    silent = QwenVLImageUnderstanding(
        model_name=qwen.model_name, prompt=None, dtype="float32", max_caption_length=LENGTH
    )
    placed = collect(images, model_placement("content", silent, F.col("asked")))
    # The pandas UDFs of Spark 4.0 have no null structs.
    placed = [place if place and any(place) else None for place in placed]
    reached = [place is not None for place in placed]
    assert reached == [bool((prompt or "").strip()) for prompt in ASKED]
    assert len({place.server_pid for place in placed if place}) == 1


def test_wrong_arguments_are_refused_on_the_driver(qwen, checkpoints):
    with pytest.raises(InputTypeError, match="allowed: an instance of QwenVLImageUnderstanding"):
        caption_image("content", ImageViTEmbedding(model_name=str(checkpoints / "dinov2")))
    with pytest.raises(InputTypeError, match="prompt of type int"):
        caption_image("content", qwen, 3)
    silent = QwenVLImageUnderstanding(model_name=qwen.model_name, prompt=None)
    with pytest.raises(InvalidOptionError, match="got no prompt"):
        caption_image("content", silent)


def test_sql_with_too_many_columns_says_what_a_function_takes(spark, images, qwen, checkpoints):
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    register_functions(spark, {"describe": qwen, "embed": dino})
    images.createOrReplaceTempView("pictures")
    for call, said in (
        (
            "describe(content, 'x', 'y')",
            "caption_image got 3 columns; allowed: images, and",
        ),
        ("embed(content, 'x')", "embed_image got 2 columns; allowed: images"),
    ):
        with pytest.raises(PythonException, match=said):
            spark.sql(f"SELECT {call} FROM pictures").collect()
