"""Vectors and answers are those of Hugging Face's own models; a bad input has its status."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from spark_vision.demo import checkpoint_path
from spark_vision.errors import RowFailure, Status, TableError
from spark_vision.search.column_model import ColumnModel
from spark_vision.search_page.query_model import QueryModel


@pytest.fixture(scope="module")
def theirs():
    return CLIPModel.from_pretrained(checkpoint_path("clip"), dtype=torch.float32).eval()


def features(output):
    """Transformers 5 returns the projected vectors in an output object."""
    vectors = output if isinstance(output, torch.Tensor) else output.pooler_output
    return torch.nn.functional.normalize(vectors, dim=-1)[0].detach().numpy()


@pytest.mark.parametrize("text", ["a small red circle", "一个红色的圆形"])
def test_a_text_has_the_vector_of_the_checkpoint(model, theirs, text):
    tokens = AutoTokenizer.from_pretrained(checkpoint_path("clip"))(text, return_tensors="pt")
    expected = features(theirs.get_text_features(**tokens))
    np.testing.assert_allclose(model.embed_text(text), expected, atol=1e-5)


def test_a_picture_has_the_vector_of_the_checkpoint(model, theirs, scenes):
    (png, *_) = sorted(scenes.folder.glob("*.png"))
    processor = AutoImageProcessor.from_pretrained(checkpoint_path("clip"))
    pixels = processor(Image.open(png).convert("RGB"), return_tensors="pt")
    expected = features(theirs.get_image_features(**pixels))
    found = model.embed_picture(png.read_bytes())
    assert float(found @ expected) > 0.999
    assert float(np.linalg.norm(found)) == pytest.approx(1, abs=1e-6)


def png_of(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", Status.NOT_AN_IMAGE),
        (b"This is not an image.", Status.NOT_AN_IMAGE),
        (png_of(1200, 1000), Status.TOO_LARGE),
        (png_of(100, 100)[:80], Status.INCOMPLETE),
    ],
)
def test_a_broken_or_large_picture_has_a_status(model, data, status):
    with pytest.raises(RowFailure) as caught:
        model.embed_picture(data)
    assert caught.value.status == status


def test_a_question_about_a_scene_is_answered(model, scenes):
    truth = next(each for each in scenes.truths if len(each.scene.objects) == 2)
    data = (scenes.folder / truth.file).read_bytes()
    assert model.answer(data, "How many shapes are there?").lower().startswith(("two", "2"))


def test_another_checkpoint_than_the_columns_is_refused(scenes):
    changed = scenes.properties | {"spark_vision.clip.fingerprint": "another"}
    with pytest.raises(TableError, match="vectors of two models do not compare"):
        QueryModel(ColumnModel("scenes", "clip", changed), {})


def test_a_model_without_texts_takes_pictures_only(scenes):
    from spark_vision import ImageViTEmbedding, describe_model
    from spark_vision.tables.identity import column_properties

    dino = ImageViTEmbedding(model_name=checkpoint_path("dinov2"))
    properties = column_properties("v", dino, describe_model(dino), ["v"], None)
    found = QueryModel(ColumnModel("scenes", "v", properties), {})
    assert not found.takes_text
    with pytest.raises(RowFailure, match="pictures only"):
        found.embed_text("a star")
    assert found.embed_picture(png_of(64, 64)).shape == (
        int(properties["spark_vision.v.dimension"]),
    )


def test_a_property_that_names_a_file_does_not_read_it(scenes, tmp_path):
    secret = tmp_path / "settings.json"
    secret.write_text('{"do_resize": false}')
    named = scenes.properties | {"spark_vision.clip.image_processor_kwargs": f"@{secret}"}
    with pytest.raises(ValueError, match="Expecting value"):
        ColumnModel("scenes", "clip", named).operator_for("image", None, None)
