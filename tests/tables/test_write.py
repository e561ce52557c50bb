"""A table is made, filled with what it lacks, and nothing is computed twice."""

import pytest
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import (
    ClipImageEmbedding,
    ClipTextEmbedding,
    QwenVLImageUnderstanding,
    caption_image,
    embed_image,
    write_vision_columns,
)
from spark_vision.errors import InputTypeError, SparkVisionError, TableError

COLUMNS = ["path", "length", "source_hash"]
COLUMNS += ["embedding", "embedding_status", "embedding_error", "updated_at"]


def history(spark, table):
    return [
        row["operation"]
        for row in spark.sql(f"DESCRIBE HISTORY delta.`{table}`").orderBy("version").collect()
    ]


def test_a_table_has_the_schema_the_properties_and_a_row_per_image(
    spark, read_photos, photos, dino, table, count_forwards
):
    result = write_vision_columns(
        read_photos(), table, ["path"], {"embedding": dino}, keep=["length"]
    )
    rows = spark.read.format("delta").load(table)

    assert rows.columns == COLUMNS
    assert dict(rows.dtypes)["embedding"] == "array<float>"
    assert dict(rows.dtypes)["updated_at"] == "timestamp"
    assert [field.name for field in rows.schema if not field.nullable] == ["path"]
    assert "48 numbers" in rows.schema["embedding"].metadata["comment"]

    found = {row["path"].rsplit("/")[-1]: row for row in rows.collect()}
    assert sorted(found) == sorted(file.name for file in photos.iterdir())
    assert all(len(row["source_hash"]["image"]) == 64 for row in found.values())
    for name, row in found.items():
        data = (photos / name).read_bytes()
        assert row["length"] == len(data)
        if name == "text.jpg":
            assert row["embedding"] is None
            assert row["embedding_status"] == "not_an_image"
            assert row["embedding_error"]
        else:
            assert len(row["embedding"]) == 48
            assert sum(value**2 for value in row["embedding"]) == pytest.approx(1, abs=1e-4)
            assert (row["embedding_status"], row["embedding_error"]) == ("ok", None)

    assert (result.source_rows, result.existing_rows, result.computed_rows) == (7, 0, 7)
    assert result.statuses == {"embedding": {"ok": 6, "not_an_image": 1}}
    assert count_forwards() == 6

    properties = dict(spark.sql(f"SHOW TBLPROPERTIES delta.`{table}`").collect())
    assert properties["delta.enableChangeDataFeed"] == "true"
    said = {
        key.removeprefix("spark_vision.embedding."): value
        for key, value in properties.items()
        if key.startswith("spark_vision.embedding.")
    }
    assert len(said.pop("fingerprint")) == 64
    assert said == {
        "operator": "ImageViTEmbedding",
        "parts": '["embedding", "embedding_status", "embedding_error"]',
        "reads": '["image"]',
        "model_name": dino.model_name,
        "model_type": "dinov2",
        "revision": "",
        "image_processor_kwargs": "{}",
        "fast_decode": "false",
        "pooling": "cls",
        "normalize": "true",
        "dtype": "float32",
        "dimension": "48",
        "package_version": "0.1.0",
    }


def test_a_second_run_computes_only_new_keys_and_writes_nothing_without_any(
    spark, read_photos, photos, dino, table, count_forwards
):
    columns = {"embedding": dino}
    write_vision_columns(read_photos(), table, ["path"], columns)
    first_history = history(spark, table)
    assert first_history == ["CREATE TABLE", "MERGE"]
    assert count_forwards() == 6

    again = write_vision_columns(read_photos(), table, ["path"], columns)
    assert (again.source_rows, again.existing_rows, again.computed_rows) == (7, 7, 0)
    assert again.statuses == {"embedding": {}}
    assert history(spark, table) == first_history
    assert count_forwards() == 6

    (photos / "new.jpg").write_bytes(encode(photo(50, 50, seed=99), "JPEG"))
    third = write_vision_columns(read_photos(), table, ["path"], columns)
    assert (third.source_rows, third.existing_rows, third.computed_rows) == (8, 7, 1)
    assert third.statuses == {"embedding": {"ok": 1}}
    assert history(spark, table) == [*first_history, "MERGE"]
    assert count_forwards() == 7
    assert spark.read.format("delta").load(table).select("path").distinct().count() == 8


def test_images_and_texts_fill_one_table_under_two_keys(spark, checkpoints, table):
    data = encode(photo(40, 40), "PNG")
    rows = [(1, "a", data, "a red circle"), (1, "b", None, "a blue square"), (2, "a", data, None)]
    source = spark.createDataFrame(rows, "id int, part string, image binary, caption string")
    name = str(checkpoints / "clip")
    result = write_vision_columns(
        source,
        table,
        ["id", "part"],
        {
            "image_vector": ClipImageEmbedding(model_name=name),
            "text_vector": ClipTextEmbedding(model_name=name),
        },
        image_column="image",
        text_column="caption",
    )
    assert result.statuses == {
        "image_vector": {"ok": 2, "null_input": 1},
        "text_vector": {"ok": 2, "null_input": 1},
    }
    found = {(row["id"], row["part"]): row for row in spark.table(result.table).collect()}
    assert len(found[1, "a"]["text_vector"]) == len(found[1, "a"]["image_vector"]) == 24
    assert len({row["source_hash"] for row in found.values()}) == 3
    again = write_vision_columns(
        source.filter("id = 1"),
        table,
        ["id", "part"],
        {
            "image_vector": ClipImageEmbedding(model_name=name),
            "text_vector": ClipTextEmbedding(model_name=name),
        },
        image_column="image",
        text_column="caption",
    )
    assert again.computed_rows == 0


def test_the_table_refuses_vectors_of_another_length(spark, read_photos, dino, table):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    row = spark.read.format("delta").load(table).limit(1).withColumn("path", F.lit("other"))
    short = row.withColumn("embedding", F.array(F.lit(1.0).cast("float")))
    with pytest.raises(Exception, match="embedding_dimension"):
        short.write.format("delta").mode("append").save(table)
    nothing = row.withColumn("embedding", F.lit(None).cast("array<float>"))
    nothing.write.format("delta").mode("append").save(table)


def test_token_vectors_fill_a_table(spark, read_photos, checkpoints, table):
    from spark_vision import ImageViTEmbedding

    tokens = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), pooling="tokens")
    result = write_vision_columns(read_photos(), table, ["path"], {"tokens": tokens})
    row = spark.table(result.table).filter("tokens_status = 'ok'").first()
    assert {len(vector) for vector in row["tokens"]} == {48}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a",), ("b",), ("a",)], "key='a' in 2 row"),
        ([("a",), (None,)], "key=None in 1 row"),
    ],
)
def test_bad_keys_are_named_before_any_image_is_read(spark, dino, table, rows, said):
    source = spark.createDataFrame(rows, "key string").withColumn(
        "content", F.raise_error(F.lit("an image was read")).cast("binary")
    )
    with pytest.raises(TableError, match=said):
        write_vision_columns(source, table, ["key"], {"embedding": dino})
    assert not spark._jvm.java.io.File(table).exists()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"keys": []}, TableError, "one or more column names"),
        ({"keys": "path"}, TableError, "list of one or more"),
        ({"keys": ["nowhere"]}, TableError, "no column 'nowhere'.*path, modificationTime"),
        ({"keys": ["content"]}, TableError, "type binary"),
        ({"keep": ["nowhere"]}, TableError, "no column 'nowhere'"),
        ({"keep": ["path"]}, TableError, "two columns path"),
        ({"image_column": "nowhere"}, TableError, "no column 'nowhere'"),
        ({"image_column": "length"}, InputTypeError, "int64"),
        ({"columns": {}}, TableError, "one or more"),
        ({"name": "a b"}, TableError, "'a b'"),
        ({"name": "source_hash"}, TableError, "two columns source_hash"),
        ({"name": "path"}, TableError, "two columns path"),
        ({"table": "vectors"}, TableError, "/folder/vectors"),
        ({"table": "what is this"}, TableError, "neither a path nor a name"),
        ({"model": "/nowhere/checkpoint"}, SparkVisionError, "/nowhere/checkpoint"),
    ],
    ids=str,
)
def test_a_wrong_write_is_refused_on_the_driver_without_a_task(
    spark, read_photos, dino, table, change, error, said
):
    from dataclasses import replace

    operator = replace(dino, model_name=change.pop("model", dino.model_name))
    arguments = {
        "table": table,
        "keys": ["path"],
        "columns": {change.pop("name", "embedding"): operator},
        **change,
    }
    source = read_photos()
    group = f"refused {change}"
    spark.sparkContext.setJobGroup(group, group)
    try:
        with pytest.raises(error, match=said):
            write_vision_columns(source, **arguments)
        assert not spark.sparkContext.statusTracker().getJobIdsForGroup(group)
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "dinov2-other"},
        {"dtype": "bfloat16"},
        {"normalize": False},
        {"use_cls_token_embedding": False},
        {"image_processor_kwargs": {"do_center_crop": False}},
    ],
    ids=str,
)
def test_another_model_is_refused_with_the_way_out(
    spark, checkpoints, dino, tmp_path_factory, change
):
    from dataclasses import replace

    table = str(tmp_path_factory.getbasetemp() / "vectors-of-one-model")
    empty = spark.createDataFrame([], "path string, content binary")
    write_vision_columns(empty, table, ["path"], {"embedding": dino})
    model = change.pop("model", "dinov2")
    other = replace(dino, model_name=str(checkpoints / model), **change)
    with pytest.raises(TableError, match="another column name, or pass recompute=True"):
        write_vision_columns(empty, table, ["path"], {"embedding": other})


def test_the_same_weights_under_another_name_are_the_same_model(
    spark, checkpoints, dino, tmp_path, table
):
    import shutil
    from dataclasses import replace

    empty = spark.createDataFrame([], "path string, content binary")
    write_vision_columns(empty, table, ["path"], {"embedding": dino})
    shutil.copytree(checkpoints / "dinov2", tmp_path / "moved")
    moved = replace(dino, model_name=str(tmp_path / "moved"))
    write_vision_columns(empty, table, ["path"], {"embedding": moved})


def test_what_is_not_our_table_is_refused(spark, dino, tmp_path):
    empty = spark.createDataFrame([], "path string, content binary")
    spark.range(1).write.format("delta").save(str(tmp_path / "delta"))
    spark.range(1).write.parquet(str(tmp_path / "parquet"))
    for name, said in (("delta", "not made by spark_vision"), ("parquet", "not a Delta table")):
        with pytest.raises(TableError, match=said):
            write_vision_columns(empty, str(tmp_path / name), ["path"], {"embedding": dino})


def test_other_keys_or_types_of_kept_columns_are_refused(spark, dino, table):
    empty = spark.createDataFrame([], "path string, other string, content binary")
    write_vision_columns(empty, table, ["path"], {"embedding": dino}, keep=["other"])
    with pytest.raises(TableError, match="has the keys path"):
        write_vision_columns(empty, table, ["path", "other"], {"embedding": dino})
    number = empty.withColumn("other", F.lit(1))
    with pytest.raises(TableError, match="column other as string, but this write has it as int"):
        write_vision_columns(number, table, ["path"], {"embedding": dino}, keep=["other"])


def test_a_key_column_may_have_any_name_that_delta_allows(spark, dino, table):
    source = spark.createDataFrame([("a", b"x")], "`order` string, content binary")
    for computed in (1, 0):
        result = write_vision_columns(source, table, ["order"], {"embedding": dino})
        assert result.computed_rows == computed


def test_a_report_that_fails_does_not_fail_the_write(spark, read_photos, dino, table, caplog):
    def report(progress):
        raise BrokenPipeError("nobody reads this")

    result = write_vision_columns(
        read_photos(), table, ["path"], {"embedding": dino}, progress=report
    )
    assert result.computed_rows == 7
    assert "cannot report the progress" in caplog.text


def test_a_key_that_stands_twice_in_the_table_is_counted_once(spark, read_photos, dino, table):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    there = spark.read.format("delta").load(table)
    there.limit(3).write.format("delta").mode("append").save(table)
    again = write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    assert (again.source_rows, again.existing_rows, again.computed_rows) == (7, 7, 0)


def test_a_name_that_delta_does_not_take_is_refused_with_the_way_out(spark, dino, table):
    rows = spark.createDataFrame([(1, b"text")], "`my key` int, content binary")
    with pytest.raises(TableError, match="withColumnRenamed"):
        write_vision_columns(rows, table, ["my key"], {"embedding": dino})


def test_a_vector_and_a_caption_of_an_image_take_one_decode(
    spark, read_photos, dino, checkpoints, table, count_decodes, count_forwards
):
    qwen = QwenVLImageUnderstanding(
        model_name=str(checkpoints / "qwen"), dtype="float32", max_caption_length=6, prompt="x"
    )
    source = read_photos().withColumn("asked", F.lit("What costs ${spark.app.name} or 'y'?"))
    columns = {"embedding": dino, "caption": qwen}
    result = write_vision_columns(source, table, ["path"], columns, prompt_column="asked")
    assert count_decodes() == 6
    assert count_forwards() == 6
    assert result.statuses == {name: {"ok": 6, "not_an_image": 1} for name in columns}
    rows = spark.read.format("delta").load(table)
    assert rows.columns == [
        "path", "source_hash", "embedding", "embedding_status", "embedding_error",
        "caption", "caption_status", "caption_error", "caption_truncated", "updated_at",
    ]  # fmt: skip
    assert dict(rows.dtypes)["caption"] == "string"
    assert dict(rows.dtypes)["caption_truncated"] == "boolean"

    alone = source.select("path", embed_image("content", dino), caption_image(
        "content", qwen, F.col("asked")
    )).collect()  # fmt: skip
    found = {row["path"]: (row["embedding"], row["caption"]) for row in rows.collect()}
    assert {path: written for path, (_, written) in found.items()} == {
        row[0]: row[2] for row in alone
    }
    assert len({written for _, written in found.values()}) > 3
    for path, vector, _ in alone:
        assert found[path][0] == (vector and pytest.approx(vector, abs=1e-5))

    again = write_vision_columns(source, table, ["path"], columns, prompt_column="asked")
    assert again.computed_rows == 0


@pytest.mark.slow
def test_a_table_of_captions_by_another_prompt_or_setting_is_refused(
    spark, read_photos, checkpoints, table
):
    def write(prompt_column=None, **options):
        qwen = QwenVLImageUnderstanding(
            model_name=str(checkpoints / "qwen"), **{"max_caption_length": 2, **options}
        )
        source = read_photos().withColumn("asked", F.lit("x"))
        return write_vision_columns(
            source, table, ["path"], {"caption": qwen}, prompt_column=prompt_column
        )

    prompt = "What costs ${spark.app.name} or 'y'?\n\\"
    assert write(prompt=prompt).computed_rows == 7
    assert write(prompt=prompt, batch_size=3, temperature=0.5).computed_rows == 0
    for changed in (
        {"prompt": "y"},
        {"prompt": prompt, "max_caption_length": 3},
        {"prompt": prompt, "do_sample": True},
        {"prompt": prompt, "prompt_column": "asked"},
    ):
        with pytest.raises(TableError, match=r"has the column caption by .*(prompt|generation)"):
            write(**changed)
    with pytest.raises(TableError, match="the column caption has no prompt"):
        write(prompt=None)
    with pytest.raises(TableError, match="no operator reads prompts"):
        write_vision_columns(
            read_photos(),
            table,
            ["path"],
            {"embedding": ClipImageEmbedding(model_name=str(checkpoints / "clip"))},
            prompt_column="length",
        )
