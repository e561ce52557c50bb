"""The truth beside the pictures is what was drawn, and what is asked follows from it."""

from spark_vision.demo import write_scenes
from spark_vision.demo.captions import caption, caption_zh
from spark_vision.demo.ground_truth import example_questions, example_texts, read_ground_truth
from spark_vision.demo.scenes import draw_scenes


def test_truth_is_what_was_drawn_beside_a_folder_or_a_glob(tmp_path):
    assert read_ground_truth(str(tmp_path)) == []
    files = write_scenes(tmp_path, 6, seed=3, renderings=2)
    truths = read_ground_truth(f"{tmp_path}/*.{{png,jpg}}")
    assert truths == read_ground_truth(str(tmp_path))
    assert [truth.file for truth in truths] == [file.name for file in files]
    drawn = draw_scenes(6, seed=3)
    assert [truth.scene for truth in truths] == [scene for scene in drawn for _ in range(2)]


def test_examples_are_of_each_count_of_objects_and_in_both_languages(tmp_path):
    write_scenes(tmp_path, 20, seed=1)
    truths = read_ground_truth(str(tmp_path))
    scenes = [truth.scene for truth in truths]
    firsts = [next(s for s in scenes if len(s.objects) == count) for count in (1, 2, 3)]
    assert example_texts(truths) == [*map(caption, firsts), caption_zh(firsts[1])]


def test_questions_come_with_their_answers_in_both_languages(tmp_path):
    write_scenes(tmp_path, 1, seed=1)
    [truth] = read_ground_truth(str(tmp_path))
    questions = example_questions(truth)
    assert questions == example_questions(truth)
    assert {question.language for question in questions} == {"en", "zh"}
    counts = [question.answer for question in questions if question.kind == "count"]
    number = len(truth.scene.objects) - 1
    assert counts == [("one", "two", "three")[number], ("一个", "两个", "三个")[number]]
