"""`embed_image` and `embed_text` as columns of a real Spark session."""

import base64
import dataclasses
import inspect
import io

import numpy as np
import psutil
import pytest
import torch
import transformers
from PIL import Image
from pyspark.errors import PythonException
from pyspark.sql import functions as F

import checkpoints as checkpoints_of
from oracles import draw_pictures, same
from spark_vision import ClipImageEmbedding, ClipTextEmbedding, ImageViTEmbedding
from spark_vision.errors import (
    CheckpointNotFoundError,
    DeviceError,
    InputTypeError,
    UnsupportedCheckpointError,
)
from spark_vision.functions import caption_image, embed_image, embed_text, model_placement
from spark_vision.spark.udfs import operator_udf

PICTURE_COUNT = 24
DIMENSION = 48


@pytest.fixture(scope="module")
def pictures():
    return draw_pictures(PICTURE_COUNT, seed=3)


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        image.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def files(spark, folder):
    return spark.read.format("binaryFile").load(f"{folder}/*.png").repartition(3)


@pytest.fixture(scope="module")
def dino(checkpoints):
    return ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), batch_size=5)


@pytest.fixture(scope="module")
def theirs(checkpoints, pictures):
    """Vectors by Hugging Face's processor and model, in the order of the file names."""
    processor = transformers.AutoImageProcessor.from_pretrained(
        checkpoints / "dinov2", backend="torchvision"
    )
    model = transformers.AutoModel.from_pretrained(checkpoints / "dinov2").eval()
    pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
    with torch.inference_mode():
        return torch.nn.functional.normalize(model(pixels).last_hidden_state[:, 0], dim=-1)


def encode(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def collect(frame, column):
    rows = frame.select("path", column.alias("embedding")).orderBy("path").collect()
    return torch.tensor([row.embedding for row in rows])


def test_binary_files_get_the_vectors_of_hugging_face(files, dino, theirs):
    assert same(collect(files, embed_image("content", dino)), theirs)


def test_every_way_to_hold_an_image_gives_the_same_vector(spark, files, folder, dino, theirs):
    base64_dino = ImageViTEmbedding(
        model_name=dino.model_name, image_src_type="image_base64", batch_size=5
    )
    address = F.regexp_replace("path", "^file:", "")
    data_url = F.concat(F.lit("data:image/png;base64,"), F.base64("content"))
    columns = {
        "row of binaryFile": embed_image(F.struct("path", "content"), dino),
        "base64": embed_image(F.base64("content"), base64_dino),
        "data URL": embed_image(data_url, base64_dino),
        "path": embed_image(address, dataclasses.replace(dino, allow_paths=str(folder))),
        "file URL": embed_image("path", dataclasses.replace(dino, allow_paths=str(folder))),
    }
    for name, column in columns.items():
        assert same(collect(files, column), theirs), name
    images = spark.read.format("image").load(str(folder)).withColumn("path", F.col("image.origin"))
    assert same(collect(images, embed_image("image", dino)), theirs)


@pytest.mark.parametrize("family", ["dinov3_vit", "siglip2"])
def test_floats_and_images_of_many_sizes_reach_the_model_server(spark, tmp_path, family):
    """DINOv3 resizes floats; SigLIP 2 of variable resolution has a size for each image."""
    is_dino, folder = family == "dinov3_vit", tmp_path / family
    (checkpoints_of.write_dinov3 if is_dino else checkpoints_of.write_siglip2)(folder)
    sizes = [(75, 100), (100, 75), (64, 64), (20, 300), (300, 20), (1, 60_000), (9, 7)] * 2
    pictures = [draw_pictures(1, *size, seed=seed)[0] for seed, size in enumerate(sizes)]
    too_narrow = torch.zeros(3, 5_000_000, 1, dtype=torch.uint8)
    files = [(number, encode(each)) for number, each in enumerate([*pictures, too_narrow])]
    operator = (ImageViTEmbedding if is_dino else ClipImageEmbedding)(
        model_name=str(folder), batch_size=5
    )
    frame = spark.createDataFrame(files, "id int, content binary").coalesce(1)
    embedded = frame.select("id", embed_image("content", operator, with_status=True).alias("r"))
    *rows, narrow = embedded.select("id", "r.*").orderBy("id").collect()
    assert (narrow.status, narrow.embedding) == ("bad_dimensions", None)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = processor(images=pictures, input_data_format="channels_first", return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs) if is_dino else model.get_image_features(**inputs)
    expected = output.last_hidden_state[:, 0] if is_dino else output.pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    given = torch.tensor([row.embedding for row in rows])
    assert (given - expected).abs().max() <= 1e-5
    assert not same(given.roll(1, 0), expected)


def test_a_path_that_no_operator_allows_is_blocked_with_the_option_that_would(files, dino):
    rows = files.select(embed_image("path", dino, with_status=True).alias("r")).select("r.*")
    for row in rows.collect():
        assert (row.embedding, row.status) == (None, "blocked")
        assert "allow_paths" in row.error


def test_pandas_functions_give_what_arrow_functions_give(
    spark, files, folder, dino, theirs, monkeypatch
):
    monkeypatch.delattr(F, "arrow_udf", raising=False)
    assert same(collect(files, embed_image("content", dino)), theirs)
    assert same(collect(files, embed_image(F.struct("path", "content"), dino)), theirs)
    images = spark.read.format("image").load(str(folder)).withColumn("path", F.col("image.origin"))
    assert same(collect(images, embed_image("image", dino)), theirs)
    tokens = ImageViTEmbedding(model_name=dino.model_name, pooling="tokens")
    nested = collect(files, embed_image("content", tokens))
    assert same(torch.nn.functional.normalize(nested[:, 0], dim=-1), theirs)
    nulls = images.select(
        "path", F.when(F.col("path").endswith("03.png"), F.col("image")).alias("i")
    )
    full = nulls.select(embed_image("i", dino, with_status=True).alias("r")).select("r.status")
    assert sorted(row.status for row in full.collect()) == ["null_input"] * 23 + ["ok"]
    rows = (
        files.select("path", embed_image(F.lit(b"text"), dino, with_status=True).alias("r"))
        .select("r.*")
        .collect()
    )
    assert {(row.embedding, row.status) for row in rows} == {(None, "not_an_image")}
    bad = files.select(embed_image(F.lit(b"text"), dino).alias("vector")).collect()
    assert {row.vector for row in bad} == {None}


def test_the_column_has_the_type_that_is_promised(files, dino):
    tokens = ImageViTEmbedding(model_name=dino.model_name, pooling="tokens")
    frame = files.select(
        embed_image("content", dino).alias("vector"),
        embed_image("content", tokens).alias("tokens"),
        embed_image("content", dino, with_status=True).alias("full"),
    )
    assert [field.dataType.simpleString() for field in frame.schema] == [
        "array<float>",
        "array<array<float>>",
        "struct<embedding:array<float>,status:string,error:string>",
    ]


def test_a_vector_does_not_depend_on_its_partition(files, dino):
    one = collect(files.coalesce(1), embed_image("content", dino))
    many = collect(files.repartition(11), embed_image("content", dino))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


def test_a_bad_image_fails_only_its_row(spark, folder, files, dino, theirs):
    good = [bytes(row.content) for row in files.orderBy("path").collect()]
    contents = [good[0], None, b"", b"<html>", good[1][:300], good[2]]
    rows = spark.createDataFrame(list(enumerate(contents)), "id int, content binary")
    full = embed_image("content", dino, with_status=True)
    given = rows.select("id", full.alias("r")).orderBy("id").select("r.*").collect()
    assert [row.status for row in given] == [
        "ok", "null_input", "not_an_image", "not_an_image", "incomplete", "ok",
    ]  # fmt: skip
    assert [row.embedding is None for row in given] == [False, True, True, True, True, False]
    assert all(row.error for row in given if row.status != "ok")
    kept = torch.tensor([given[0].embedding, given[5].embedding])
    torch.testing.assert_close(kept, theirs[[0, 2]], atol=1e-4, rtol=0)


def test_failed_rows_are_zero_or_fail_the_job_where_asked(spark, dino):
    rows = spark.createDataFrame([(b"text",)], "content binary")
    zero = ImageViTEmbedding(model_name=dino.model_name, on_error="zero")
    (row,) = rows.select(embed_image("content", zero).alias("vector")).collect()
    assert len(row.vector) == DIMENSION
    assert set(row.vector) == {0.0}
    strict = ImageViTEmbedding(model_name=dino.model_name, on_error="raise")
    with pytest.raises(PythonException, match="not_an_image"):
        rows.select(embed_image("content", strict)).collect()


def test_each_row_is_computed_once_though_it_is_used_twice(files, dino, count_forwards):
    embedded = files.select("path", embed_image("content", dino).alias("vector"))
    used = embedded.where(F.size("vector") > 0).select(
        "path", "vector", F.size("vector").alias("length")
    )
    assert len(used.collect()) == PICTURE_COUNT
    assert count_forwards() == PICTURE_COUNT


def test_a_deterministic_function_is_computed_again_by_a_filter(files, dino, count_forwards):
    column = embed_image("content", dino, deterministic=True)
    used = files.select("path", column.alias("vector")).where(F.size("vector") > 0)
    assert len(used.collect()) == PICTURE_COUNT
    assert count_forwards() == 2 * PICTURE_COUNT


def test_a_filter_passes_below_a_deterministic_function_only(files, dino, count_forwards):
    pushed = files.select("path", embed_image("content", dino, deterministic=True).alias("v"))
    assert pushed.where(F.col("path").endswith("03.png")).count() == 1
    assert len(pushed.where(F.col("path").endswith("03.png")).collect()) == 1
    assert count_forwards() == 1
    kept = files.select("path", embed_image("content", dino).alias("v"))
    assert len(kept.where(F.col("path").endswith("03.png")).collect()) == 1
    assert count_forwards() == 1 + PICTURE_COUNT


def test_first_and_limit_end_cleanly(files, dino):
    embedded = files.select(embed_image("content", dino).alias("vector"))
    assert embedded.first() is not None
    assert len(embedded.limit(3).collect()) == 3
    assert embedded.count() == PICTURE_COUNT


def test_statuses_reach_an_accumulator(spark, files, dino):
    class Counts:
        def zero(self, value):
            return {}

        def addInPlace(self, one, other):  # noqa: N802 - Spark's name
            for status, count in other.items():
                one[status] = one.get(status, 0) + count
            return one

    statuses = spark.sparkContext.accumulator({}, Counts())
    some = F.when(F.col("path").endswith("3.png"), F.col("content"))
    column = operator_udf(dino, statuses=statuses)(some)
    files.select(column).write.format("noop").mode("overwrite").save()
    assert statuses.value == {"ok": 3, "null_input": PICTURE_COUNT - 3}


def test_texts_and_images_meet_in_one_space(spark, files, checkpoints):
    name = str(checkpoints / "clip")
    image = embed_image("content", ClipImageEmbedding(model_name=name))
    text = embed_text(F.lit("a red circle"), ClipTextEmbedding(model_name=name))
    rows = files.select(image.alias("image"), text.alias("text")).collect()
    assert len({tuple(row.text) for row in rows}) == 1
    assert len(rows[0].image) == len(rows[0].text)
    np.testing.assert_allclose(np.linalg.norm(rows[0].text), 1, atol=1e-5)
    nulls = spark.createDataFrame([(None,), ("a",)], "text string")
    full = embed_text("text", ClipTextEmbedding(model_name=name), with_status=True)
    assert [row.r.status for row in nulls.select(full.alias("r")).collect()] == ["null_input", "ok"]


def test_what_the_driver_can_know_is_refused_before_any_task(spark, checkpoints, tmp_path, dino):
    column = "content"
    with pytest.raises(CheckpointNotFoundError, match="/no/such/folder"):
        embed_image(column, ImageViTEmbedding(model_name="/no/such/folder"))
    with pytest.raises(CheckpointNotFoundError, match="nothere"):
        embed_image(column, ImageViTEmbedding(model_name="./nothere"))
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        embed_image(column, ImageViTEmbedding(model_name=str(tmp_path)))
    with pytest.raises(UnsupportedCheckpointError, match="ClipImageEmbedding"):
        embed_image(column, ImageViTEmbedding(model_name=str(checkpoints / "clip")))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpointError, match="resnet"):
        embed_image(column, ImageViTEmbedding(model_name=str(tmp_path)))
    with pytest.raises(InputTypeError, match="embed_text got ImageViTEmbedding"):
        embed_text(column, dino)
    with pytest.raises(InputTypeError, match="embed_image got ClipTextEmbedding"):
        embed_image(column, ClipTextEmbedding(model_name=str(checkpoints / "clip")))
    with pytest.raises(InputTypeError, match="embed_image got ImageViTEmbedding"):
        embed_image(column, ImageViTEmbedding)


def test_a_column_of_another_type_says_what_is_allowed(spark, dino):
    with pytest.raises(PythonException, match=r"InputTypeError.*int64"):
        spark.range(2).select(embed_image("id", dino)).collect()


def test_neither_token_nor_storage_options_are_in_a_plan(spark, files, dino, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    operator = ImageViTEmbedding(
        model_name=dino.model_name, storage_options={"key": "secret_storage_key"}
    )
    frame = files.select(embed_image("content", operator))
    plan = frame._jdf.queryExecution().toString()
    assert "embed_image" in plan
    assert "secret" not in plan


def test_a_picture_of_any_mode_is_read(spark, dino):
    def encode(mode):
        buffer = io.BytesIO()
        Image.new(mode, (40, 30), 77 if mode in "L" else (200, 30, 30, 128)[: len(mode)]).save(
            buffer, "PNG"
        )
        return base64.b64encode(buffer.getvalue()).decode()

    rows = spark.createDataFrame([(encode(mode),) for mode in ("L", "RGB", "RGBA")], "text string")
    operator = ImageViTEmbedding(model_name=dino.model_name, image_src_type="image_base64")
    full = embed_image("text", operator, with_status=True)
    assert {row.r.status for row in rows.select(full.alias("r")).collect()} == {"ok"}


def test_a_gpu_that_a_local_session_lacks_fails_before_any_task(spark, files, dino, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no GPU on this machine"):
        embed_image("content", ImageViTEmbedding(model_name=dino.model_name, device="cuda"))


def test_all_slots_of_a_session_compute_in_one_process(spark, files, dino, theirs):
    rows = files.select("path", model_placement("content", dino).alias("p")).collect()
    (placed,) = {row.p for row in rows}
    assert placed.device == "cpu"
    assert placed.dtype == "float32"
    assert len(placed.fingerprint) == 64
    command = psutil.Process(placed.server_pid).cmdline()
    assert "spark_vision.model_server" in command
    java = psutil.Process(int(placed.executor.split("-")[0]))
    assert java.name() == "java"
    text = F.lit(b"no image")
    missing = files.limit(1).select(model_placement(text, dino).alias("p")).collect()[0].p
    # The pandas UDFs of Spark 4.0 have no null structs.
    assert missing is None or not any(missing)


def test_sharing_by_worker_keeps_the_model_in_the_worker(spark, files, dino, theirs):
    alone = ImageViTEmbedding(model_name=dino.model_name, batch_size=5, model_sharing="worker")
    assert same(collect(files, embed_image("content", alone)), theirs)
    rows = files.select(model_placement("content", alone).alias("p")).distinct().collect()
    for row in rows:
        assert "pyspark.worker" in psutil.Process(row.p.server_pid).cmdline()


def test_column_functions_take_col_first_and_flags_by_keyword():
    for function in (embed_image, embed_text, caption_image, model_placement):
        parameters = inspect.signature(function).parameters
        assert next(iter(parameters)) == "col"
        for flag in {"with_status", "deterministic"} & {*parameters}:
            assert parameters[flag].kind is inspect.Parameter.KEYWORD_ONLY
