"""A table is a path or a name; the one form that SQL takes is made from either."""

from pathlib import Path

import pytest

from spark_vision.cli.inputs import read_images
from spark_vision.errors import TableError
from spark_vision.operators import ImageViTEmbedding
from spark_vision.tables.location import literal, locate_table, quote, read_detail
from spark_vision.tables.write import write_vision_columns


@pytest.mark.parametrize(
    ("given", "sql"),
    [
        ("/data/vectors", "delta.`/data/vectors`"),
        ("s3a://bucket/vectors", "delta.`s3a://bucket/vectors`"),
        ("dbfs:/data/vectors", "delta.`dbfs:/data/vectors`"),
        ("file:/data/vectors", "delta.`file:/data/vectors`"),
        ("delta.`/data/vectors`", "delta.`/data/vectors`"),
        ("DELTA.`/data/with ``tick`", "delta.`/data/with ``tick`"),
        ("./vectors", f"delta.`{Path.cwd() / 'vectors'}`"),
        ("lake.photos.vectors", "`lake`.`photos`.`vectors`"),
        ("lake.`my photos`.vectors", "`lake`.`my photos`.`vectors`"),
    ],
)
def test_a_table_is_located(spark, given, sql):
    assert locate_table(spark, given).sql == sql


@pytest.mark.parametrize("given", ["", "a.b.c.d", "a..b", "a b", "vectors;", "`open"])
def test_what_is_no_name_is_refused(spark, given):
    with pytest.raises(TableError, match="neither a path nor a name"):
        locate_table(spark, given)


@pytest.mark.parametrize("given", ["vectors", "default.vectors", "spark_catalog.default.vectors"])
def test_a_name_in_a_catalog_that_forgets_is_refused_with_the_path_form(spark, given):
    with pytest.raises(TableError, match="give a path such as /folder/vectors"):
        locate_table(spark, given)


def test_where_no_table_is_there_is_no_detail(spark, tmp_path):
    assert read_detail(spark, locate_table(spark, str(tmp_path / "nothing"))) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/data/${env:HOME}/vectors", "replaces in SQL"),
        ("delta.`/data/${env:HOME}`", "replaces in SQL"),
        ("lake.`${env:HOME}`.vectors", "replaces in SQL"),
        ("${env:HOME}", "replaces in SQL"),
        ("/data/a\\b", "several ways"),
        ("delta.`C:\\data`", "several ways"),
        ("s3a://key:hunter2@bucket/vectors", "a user name or password"),
        ("s3a://hunter2@bucket/vectors", "a user name or password"),
        ("s3a://key:hunter2/hunter2@bucket/vectors", "a user name or password"),
        ("s3a://key:12345/hunter2@bucket/vectors", "a user name or password"),
        ("s3a:/key:hunter2@bucket/vectors", "a user name or password"),
        ("delta.`s3a://key:hunter2@bucket/vectors`", "a user name or password"),
        ("abfss://c:hunter2@account.dfs.core.windows.net/vectors", "a user name or password"),
    ],
)
def test_what_spark_would_read_in_another_way_is_refused(spark, given, said):
    for read in (locate_table, read_images):
        with pytest.raises(TableError, match=said) as caught:
            read(spark, given)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "abfss://container@account.dfs.core.windows.net/vectors",
        "abfss://container@account.dfs.core.windows.net/at=12:30/me@corp.example/vectors",
        "hdfs://namenode:8020/user/me@corp.example/vectors",
        "s3a://bucket/at=12:30/me@corp.example",
        "dbfs:/Users/me@corp.example/12:30@noon",
        "file:/home/me:us@corp.example/vectors",
        "file:///home/me:us@corp.example/vectors",
    ],
)
def test_a_container_and_a_folder_with_an_at_sign_are_no_user(spark, path):
    assert locate_table(spark, path).sql == f"delta.`{path}`"


def test_a_path_or_column_with_a_variable_reaches_no_sql(spark, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", "expanded")
    (shown,) = spark.sql("SELECT '${env:PLANTED}' AS value").head()
    for name in ("${env:PLANTED}", "a\\b"):
        source = spark.range(1).selectExpr("id", "binary('x') AS content")
        with pytest.raises(TableError):
            write_vision_columns(
                source, f"{tmp_path}/{name}", ["id"], {"embedding": ImageViTEmbedding()}
            )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TableError, match="rename the column"):
        quote("a${env:PLANTED}")
    assert spark.sql(f"SELECT {literal('${env:PLANTED}')} AS v").head().v == "${env:PLANTED}"
    assert shown in ("expanded", "${env:PLANTED}")
