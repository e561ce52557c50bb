"""A lesson is decided by its seed and number, and says as much of its pictures as is wanted."""

import pytest
import torch
from transformers import AutoProcessor

from spark_vision.demo import checkpoint_path
from spark_vision.demo.questions import LANGUAGES
from training.qwen_lessons import TOKEN_CLASSES, Lessons


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(checkpoint_path("qwen2_5_vl"))


@pytest.mark.parametrize(
    ("questions", "count"), [(None, 0), (0, len(LANGUAGES)), (3, len(LANGUAGES) + 3)]
)
def test_as_much_is_said_of_each_picture_as_is_wanted(processor, questions, count):
    batch = Lessons(processor, "train", 3, 2, 5, questions)[1].batch
    assert batch.segments.amax(dim=1).tolist() == [count] * 5
    assert batch.answers.any() == (count > 0)


def test_a_lesson_is_the_same_each_time_and_no_other_lesson(processor):
    first, again, other = (
        Lessons(processor, "train", 3, 2, 5, 0)[number].batch.pixel_values for number in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_tokens_show_every_object_of_their_picture(processor):
    lesson = Lessons(processor, "train", 4, 1, 6, None)[0]
    places = lesson.shown[:, list(TOKEN_CLASSES).index("place")].view(6, -1)
    for row in places:
        objects = {int(place) for place in row if place > 0}
        assert objects == set(range(1, max(objects) + 1))
    assert len(lesson.ink) == len(lesson.batch.pixel_values)
