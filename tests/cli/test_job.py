"""What a job says of an error: one line, the cause, and no stack."""

import pytest

from spark_vision.cli.job import one_line_message
from spark_vision.errors import DeviceError, SparkVisionError


def error_of(action):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever Spark raises
        action()
    return caught.value


def test_an_error_raised_on_an_executor_is_told_as_it_was_raised(spark):
    from pyspark.sql import functions as F

    @F.udf("int")
    def fail(_):
        from spark_vision.errors import DeviceError

        raise DeviceError("no GPU is here; set device='cpu'")

    error = error_of(lambda: spark.range(1).select(fail("id")).collect())
    assert not isinstance(error, SparkVisionError)
    assert one_line_message(error) == "no GPU is here; set device='cpu'"


def test_any_other_error_of_a_worker_is_told_by_its_last_line(spark):
    from pyspark.sql import functions as F

    @F.udf("int")
    def fail(_):
        return {}["lost"]

    error = error_of(lambda: spark.range(1).select(fail("id")).collect())
    assert one_line_message(error) == "KeyError: 'lost'"


def test_an_analysis_error_is_told_by_its_first_line(spark):
    said = one_line_message(error_of(lambda: spark.sql("SELECT nothing FROM range(1)")))
    assert "nothing" in said
    assert "\n" not in said
    assert "SQLSTATE" not in said


def test_an_error_of_the_jvm_is_told_without_its_stack(spark):
    said = one_line_message(
        error_of(lambda: spark.read.format("delta").load("s3a://nobody/here").schema)
    )
    assert "S3AFileSystem" in said
    assert "\tat " not in said


def test_an_error_of_ours_is_told_as_it_is():
    assert one_line_message(DeviceError("no GPU")) == "no GPU"


def test_an_error_without_words_is_told_by_its_kind():
    assert one_line_message(RuntimeError()) == "RuntimeError"
