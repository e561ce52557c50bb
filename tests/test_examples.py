"""Every public name has an example, and each runs as it is written."""

import doctest
import inspect
import io
from contextlib import redirect_stdout

import pytest
from pyspark.sql import functions as F

import spark_vision
from documented_places import replacing
from spark_vision import ImageViTEmbedding, write_vision_columns
from spark_vision.demo import write_scenes
from spark_vision.demo.ground_truth import TRUTH_FILE

PUBLIC = {name: getattr(spark_vision, name) for name in spark_vision.__all__}
DOCUMENTED = {
    name: each
    for name, each in PUBLIC.items()
    if callable(each) and not (isinstance(each, type) and issubclass(each, Exception))
}


@pytest.fixture(scope="module")
def localize(spark, checkpoints, tmp_path_factory):
    """Puts in the place of /data a folder with photos, and with a table of their vectors."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "photos", 4, seed=0)
    (folder / "photos" / TRUTH_FILE).unlink()
    photos = spark.read.format("binaryFile").load(str(folder / "photos"))
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    write_vision_columns(photos, str(folder / "photo_vectors"), ["path"], {"embedding": dino})
    return replacing(folder, checkpoints)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_public_name_runs(spark, localize, name):
    text = inspect.getdoc(DOCUMENTED[name])
    assert "\nExample:\n" in text
    examples = doctest.DocTestParser().get_examples(text.partition("\nExample:\n")[2])
    assert name in "".join(each.source for each in examples)
    names = {"spark": spark, "F": F, **PUBLIC}
    for example in examples:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(localize(example.source), f"<example of {name}>", "single"), names)
        if example.want:
            assert printed.getvalue() == localize(example.want).replace("<BLANKLINE>", "")


def test_an_example_that_prints_something_else_is_seen(spark, localize, monkeypatch):
    def wrong():
        """Do nothing.

        Example:
            >>> wrong = 1
            >>> wrong
            2
        """

    monkeypatch.setitem(DOCUMENTED, "wrong", wrong)
    with pytest.raises(AssertionError):
        test_the_example_of_a_public_name_runs(spark, localize, "wrong")
