"""`tag_image` and `tag_vectors` as columns of a real Spark session, in SQL and in a table."""

import inspect
import io

import pytest
import torch
import transformers
from PIL import Image
from pyspark.errors import PythonException
from pyspark.sql import functions as F

from oracles import draw_pictures
from spark_vision import (
    ClipImageEmbedding,
    ClipImageTags,
    ClipTextEmbedding,
    ClipVectorTags,
    ImageViTEmbedding,
    embed_image,
    model_placement,
    plan_vision_columns,
    register_functions,
    search_images,
    tag_image,
    tag_vectors,
    write_vision_columns,
)
from spark_vision.errors import (
    CheckpointNotFoundError,
    InputTypeError,
    InvalidOptionError,
    TableError,
)

TAGS = ["red circle", "blue square", "tree", "house"]
PICTURE_COUNT = 6


@pytest.fixture(scope="module")
def pictures():
    drawn = draw_pictures(PICTURE_COUNT, seed=8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in drawn]


@pytest.fixture(scope="module")
def images(spark, pictures):
    """The pictures, a null and a text, by their number."""
    contents = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        contents.append(buffer.getvalue())
    rows = list(enumerate([*contents, None, b"text"]))
    return spark.createDataFrame(rows, "id int, content binary").repartition(2).cache()


@pytest.fixture(scope="module")
def clip(checkpoints):
    return ClipImageEmbedding(model_name=str(checkpoints / "clip"), batch_size=4)


@pytest.fixture(scope="module")
def expected(checkpoints, pictures):
    """The tags of each picture by Hugging Face's processor and model, the best first."""
    folder = checkpoints / "clip"
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    texts = tokenizer([f"a photo of a {tag}" for tag in TAGS], padding=True, return_tensors="pt")
    pixels = processor(images=pictures, return_tensors="pt").pixel_values
    with torch.inference_mode():
        scores = model(**texts, pixel_values=pixels).logits_per_image.softmax(dim=1)
    return [
        sorted(zip(TAGS, row, strict=True), key=lambda each: -each[1]) for row in scores.tolist()
    ]


def tags_of(frame, column):
    rows = frame.select("id", column.alias("tags")).orderBy("id").collect()
    return [None if row.tags is None else [tuple(each) for each in row.tags] for row in rows]


def assert_same(given, expected):
    for mine, theirs in zip(given, expected, strict=True):
        assert [tag for tag, _ in mine] == [tag for tag, _ in theirs]
        assert [score for _, score in mine] == pytest.approx([s for _, s in theirs], abs=1e-5)


def test_tags_are_hugging_faces_and_a_bad_image_has_none(images, clip, expected):
    given = tags_of(images, tag_image("content", clip, TAGS, top_k=4))
    assert_same(given[:PICTURE_COUNT], expected)
    assert given[PICTURE_COUNT:] == [None, None]
    three = tags_of(images, tag_image("content", clip, TAGS))
    assert_same(three[:PICTURE_COUNT], [row[:3] for row in expected])


def test_vectors_give_the_tags_of_their_images(images, clip, expected):
    embedded = images.select("id", embed_image("content", clip).alias("vector"))
    given = tags_of(embedded, tag_vectors("vector", clip, TAGS, top_k=4))
    assert_same(given[:PICTURE_COUNT], expected)
    assert given[PICTURE_COUNT:] == [None, None]
    doubled = F.transform("vector", lambda number: number.cast("double") * 3)
    assert_same(tags_of(embedded, tag_vectors(doubled, clip, TAGS, top_k=4))[:6], expected)


def test_statuses_say_why_there_are_no_tags(images, clip):
    full = images.select("id", tag_image("content", clip, TAGS, with_status=True).alias("r"))
    statuses = [row.status for row in full.orderBy("id").select("r.status").collect()]
    assert statuses == ["ok"] * PICTURE_COUNT + ["null_input", "not_an_image"]
    zero = F.array_repeat(F.lit(0.0), 24)
    some = images.limit(1).select(tag_vectors(zero, clip, TAGS, with_status=True).alias("r"))
    row = some.select("r.*").first()
    assert (row.tags, row.status) == (None, "nonfinite")
    assert "zero" in row.error


def test_the_columns_have_the_type_that_is_promised(images, clip):
    frame = images.select(
        tag_image("content", clip, TAGS).alias("tags"),
        tag_image("content", clip, TAGS, with_status=True).alias("full"),
        tag_vectors(F.array(F.lit(0.0)), clip, TAGS).alias("vectors"),
    )
    assert [field.dataType.simpleString() for field in frame.schema] == [
        "array<struct<tag:string,score:float>>",
        "struct<tags:array<struct<tag:string,score:float>>,status:string,error:string>",
        "array<struct<tag:string,score:float>>",
    ]


def test_pandas_functions_give_what_arrow_functions_give(images, clip, expected, monkeypatch):
    monkeypatch.delattr(F, "arrow_udf", raising=False)
    given = tags_of(images, tag_image("content", clip, TAGS, top_k=4))
    assert_same(given[:PICTURE_COUNT], expected)
    good = images.where(f"id < {PICTURE_COUNT}")
    assert_same(tags_of(good, tag_image("content", clip, TAGS, top_k=4)), expected)
    full = tag_image("content", clip, TAGS, top_k=4, with_status=True)
    assert_same(tags_of(good, full["tags"]), expected)
    embedded = images.select("id", embed_image("content", clip).alias("vector"))
    given = tags_of(embedded, tag_vectors("vector", clip, TAGS, top_k=4))
    assert_same(given[:PICTURE_COUNT], expected)
    assert given[PICTURE_COUNT:] == [None, None]


def test_arguments_replace_the_operators_options(images, clip, expected):
    tagger = clip.convert(ClipImageTags, tags=["boat"], top_k=4)
    assert_same(tags_of(images, tag_image("content", tagger, TAGS))[:PICTURE_COUNT], expected)
    one = images.limit(1)
    (given,) = tags_of(one, tag_image("content", tagger))
    assert given == [("boat", 1.0)]
    other = tags_of(one, tag_image("content", clip, TAGS, template="{}"))
    assert other != tags_of(one, tag_image("content", clip, TAGS))


def test_they_are_functions_of_sql(spark, images, clip, expected):
    tagger = clip.convert(ClipImageTags, tags=TAGS, top_k=4)
    operators = {
        "tag_image": tagger,
        "tag_vectors": tagger.convert(ClipVectorTags),
        "embed_image": clip,
    }
    register_functions(spark, operators)
    images.createOrReplaceTempView("images_to_tag")
    query = f"SELECT id, {{}} AS tags FROM images_to_tag WHERE id < {PICTURE_COUNT}"
    for call in ("tag_image(content)", "tag_vectors(embed_image(content))"):
        assert_same(tags_of(spark.sql(query.format(call)), F.col("tags")), expected)


def test_they_say_where_they_are_computed(images, clip):
    tagger = clip.convert(ClipImageTags, tags=TAGS)
    (placed,) = images.where("id = 0").select(model_placement("content", tagger)).collect()
    (embedded,) = images.where("id = 0").select(model_placement("content", clip)).collect()
    assert placed[0].server_pid == embedded[0].server_pid


def test_tags_are_a_column_of_a_table_and_other_tags_another_model(
    spark, images, clip, expected, tmp_path
):
    table = str(tmp_path / "table")
    tagger = clip.convert(ClipImageTags, tags=TAGS, top_k=4)
    result = write_vision_columns(images, table, ["id"], {"embedding": clip, "tags": tagger})
    statuses = {"ok": PICTURE_COUNT, "null_input": 1, "not_an_image": 1}
    assert result.statuses == {"embedding": statuses, "tags": statuses}
    written = spark.read.format("delta").load(table)
    assert_same(tags_of(written, F.col("tags"))[:PICTURE_COUNT], expected)
    assert_same(
        tags_of(written, tag_vectors("embedding", clip, TAGS, top_k=4))[:PICTURE_COUNT], expected
    )
    assert plan_vision_columns(images, table, ["id"], {"tags": tagger}).pending_rows == 0
    for changed, key in (
        ({"tags": [*TAGS, "boat"]}, "tags"),
        ({"tags": TAGS[::-1]}, "tags"),
        ({"template": "{}"}, "template"),
        ({"top_k": 1}, "top_k"),
        ({"image_processor_kwargs": {"do_center_crop": False}}, "image_processor_kwargs"),
    ):
        other = tagger.convert(ClipImageTags, **changed)
        with pytest.raises(TableError, match=rf"by .*clip with {key} .*but this write has {key} "):
            write_vision_columns(images, table, ["id"], {"tags": other})
    fewer = tagger.convert(ClipImageTags, top_k=1)
    write_vision_columns(images, table, ["id"], {"tags": fewer}, recompute=True)
    again = tags_of(spark.read.format("delta").load(table), F.col("tags"))
    assert_same(again[:PICTURE_COUNT], [row[:1] for row in expected])


def test_a_table_has_no_column_of_tags_of_vectors_and_no_search_of_tags(
    spark, images, clip, tmp_path
):
    of_vectors = clip.convert(ClipVectorTags, tags=TAGS)
    with pytest.raises(TableError, match=r"the column tags .* a vector column.*apply tag_vectors"):
        write_vision_columns(images, str(tmp_path / "table"), ["id"], {"tags": of_vectors})
    table = str(tmp_path / "tags")
    tagger = clip.convert(ClipImageTags, tags=TAGS)
    write_vision_columns(images.where("id < 2"), table, ["id"], {"tags": tagger})
    with pytest.raises(TableError, match="has no column 'tags' of vectors"):
        search_images(table, "tags", "a tree")
    embedded = images.limit(2).select("id", embed_image("content", clip).alias("vector"))
    found = search_images(embedded, "vector", "a tree", tagger, keys=["id"], k=1)
    assert found.first()["status"] == "ok"


def test_what_the_driver_can_know_is_refused_before_any_task(clip, checkpoints):
    for tag in (tag_image, tag_vectors):
        name = tag.__name__
        dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
        with pytest.raises(InputTypeError, match=f"{name} got ImageViTEmbedding; allowed: .*Clip"):
            tag("content", dino, TAGS)
        with pytest.raises(InputTypeError, match=f"{name} got ClipImageEmbedding; allowed"):
            tag("content", ClipImageEmbedding, TAGS)
        with pytest.raises(InvalidOptionError, match="tags got no tag"):
            tag("content", clip)
        with pytest.raises(InvalidOptionError, match="tags got no tag"):
            tag("content", clip, [])
        with pytest.raises(InvalidOptionError, match=r"template got 'a photo'.*\{\}"):
            tag("content", clip, TAGS, template="a photo")
        with pytest.raises(InvalidOptionError, match="top_k got 0"):
            tag("content", clip, TAGS, top_k=0)
        with pytest.raises(InvalidOptionError, match="more tokens than the context"):
            tag("content", clip, ["tree", "tree " * 40])
        other = ClipImageEmbedding(model_name=dino.model_name)
        with pytest.raises(CheckpointNotFoundError, match="it lacks a tokenizer"):
            tag("content", other, TAGS)
    with pytest.raises(InputTypeError, match="tag_image got ClipTextEmbedding"):
        tag_image("content", ClipTextEmbedding(model_name=clip.model_name), TAGS)


def test_a_column_that_has_no_vectors_of_the_model_says_what_is_allowed(spark, images, clip):
    one = images.limit(1)
    with pytest.raises(PythonException, match=r"InputTypeError.*a vector of 3 numbers"):
        one.select(tag_vectors(F.array_repeat(F.lit(1.0), 3), clip, TAGS)).collect()
    with pytest.raises(PythonException, match=r"InputTypeError.*a column of binary"):
        one.select(tag_vectors("content", clip, TAGS)).collect()


def test_column_functions_take_col_first_and_flags_by_keyword():
    for function in (tag_image, tag_vectors):
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:3] == ["col", "operator", "tags"]
        for flag in ("template", "top_k", "with_status", "deterministic"):
            assert parameters[flag].kind is inspect.Parameter.KEYWORD_ONLY
