"""A table is a path or a name; the one form that SQL takes is made from either."""

from pathlib import Path

import pytest

from spark_vision.errors import TableError
from spark_vision.tables.location import locate_table, read_detail


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
    with pytest.raises(TableError, match="not understood"):
        locate_table(spark, given)


@pytest.mark.parametrize("given", ["vectors", "default.vectors", "spark_catalog.default.vectors"])
def test_a_name_in_a_catalog_that_forgets_is_refused_with_the_path_form(spark, given):
    with pytest.raises(TableError, match="give a path such as /folder/vectors"):
        locate_table(spark, given)


def test_where_no_table_is_there_is_no_detail(spark, tmp_path):
    assert read_detail(spark, locate_table(spark, str(tmp_path / "nothing"))) is None
