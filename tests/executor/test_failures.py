"""What failed rows mean for their task: which one an error names, and when there are too many."""

import pickle

import pyarrow as pa
import pytest

from oracles import draw_pictures
from spark_vision import ClipTextEmbedding, ImageViTEmbedding, QwenVLImageUnderstanding
from spark_vision.errors import FailureRateError, InvalidOptionError, RowFailure
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.embedding import embed_texts
from spark_vision.executor.failures import RowNames, check_failure_rate
from spark_vision.executor.task import Task

TASK = Task(gpu_addresses=(), cpus=2)


@pytest.fixture(scope="module")
def file():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(draw_pictures(1)[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def vit(checkpoints):
    def make(**options):
        return ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), batch_size=4, **options)

    return make


def compute(batches, operator, **options):
    arrays = compute_columns(batches, [operator], TASK, **options)
    return [row for (part,) in arrays for row in part]


KEYS = ("id", "url")


def keys_of(*rows):
    return pa.array([[row["id"], row["url"]] for row in rows], pa.list_(pa.string()))


def message(batches, operator, **options):
    with pytest.raises(RowFailure) as raised:
        compute(batches, operator, **options)
    return str(pickle.loads(pickle.dumps(raised.value)))


def test_the_first_bad_row_is_named_by_its_place(vit, file):
    good, bad = pa.array([file] * 3), pa.array([file, b"text", b"text"])
    assert message([good, bad], vit(on_error="raise")).startswith("row 5 of its task: not_an_image")


def test_the_first_bad_row_is_named_by_its_address_without_secrets(vit):
    urls = pa.array([None, "http://user:secret@"])
    assert message([pa.array(["/no/photo.jpg?sig=secret"])], vit(on_error="raise")).startswith(
        "row 1 of its task (/no/photo.jpg): "
    )
    said = message([pa.array(["http://user:secret@[bad/x?token=secret"])], vit(on_error="raise"))
    assert said.startswith("row 1 of its task (http://")
    assert "secret" not in said
    assert message([urls], vit(on_error="raise")) == (
        "row 1 of its task (null): null_input: the value is null"
    )


def test_a_string_that_is_no_address_does_not_name_a_row(vit):
    operator = vit(on_error="raise", image_src_type="image_base64")
    assert message([pa.array(["?!"])], operator).startswith("row 1 of its task: bad_base64: ")


def test_the_first_bad_row_is_named_by_the_key_that_comes_with_it(vit, file):
    good = (pa.array([file]), keys_of({"id": "1", "url": "https://u:secret@h/1.jpg"}))
    bad = (
        pa.array([file, b"text"]),
        keys_of(
            {"id": "2", "url": None},
            {"id": "图3\n\u202e", "url": "https://u:secret@h/3.jpg?s=secret"},
        ),
    )
    said = message([good, bad], vit(on_error="raise"), keys=KEYS)
    assert said.startswith("id=图3 \\u202e, url=https://h/3.jpg: not_an_image: ")


def test_a_huge_key_is_cut(vit):
    batch = (pa.array([b"text"]), keys_of({"id": "x" * 10_000_000, "url": ""}))
    said = message([batch], vit(on_error="raise"), keys=KEYS)
    assert said.startswith("id=xxx")
    assert len(said) < 2 * 200 + 30


def test_keys_are_read_past_and_change_no_value(vit, file):
    batch = pa.array([file, b"text"])
    keys = keys_of(*[{"id": "1", "url": ""}] * 2)
    assert compute([(batch, keys)], vit(), keys=KEYS) == compute([batch], vit())


def test_a_row_of_a_caption_is_named_beside_its_prompt(checkpoints, file):
    operator = QwenVLImageUnderstanding(
        model_name=str(checkpoints / "qwen"),
        dtype="float32",
        max_caption_length=2,
        on_error="raise",
    )
    batch = (pa.array([file, b"text"]), pa.array(["x", "y"]))
    keyed = (*batch, keys_of(*[{"id": str(number), "url": ""} for number in range(2)]))
    assert message([batch], operator).startswith("row 2 of its task: not_an_image")
    assert message([keyed], operator, keys=KEYS).startswith("id=1, url=: not_an_image")


def test_a_row_of_texts_is_named(checkpoints):
    operator = ClipTextEmbedding(model_name=str(checkpoints / "clip"), on_error="raise")
    with pytest.raises(RowFailure, match=r"^row 2 of its task: null_input: the text is null$"):
        list(embed_texts([pa.array(["red", None])], operator, TASK))
    keyed = (pa.array(["red", None]), keys_of(*[{"id": "7", "url": "x"}] * 2))
    with pytest.raises(RowFailure, match=r"^id=7, url=x: null_input"):
        list(embed_texts([keyed], operator, TASK, keys=KEYS))


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("17", "17"),
        ("-1.5", "-1.5"),
        ("2024-02-29 12:30:00.5", "2024-02-29 12:30:00.5"),
        ("n02123_7", "n02123_7"),
        ("猫 1", "猫 1"),
        ("https://host/a.png?token=hunter2", "https://host/a.png"),
        ("user:hunter2", "…"),
        ("AccountKey=hunter2", "…"),
        (None, "null"),
    ],
)
def test_a_key_is_shown_but_for_what_may_be_a_secret(vit, key, shown):
    names = RowNames([vit(on_error="raise")], ["id"])
    list(names.watch([(pa.array(["a.png"]), pa.array([[key]], pa.list_(pa.string())))]))
    assert names.name(0) == f"id={shown}"


def test_names_of_rows_that_are_done_are_not_kept(vit):
    names = RowNames([vit(on_error="raise")])
    batches = list(
        names.watch([pa.array(["a.png", "b.png"]), *map(pa.array, (["c.png"], ["d.png"]))])
    )
    assert [len(each) for each in batches] == [2, 1, 1]
    names.forget(1)
    assert "(b.png)" in names.name(1)
    names.forget(3)
    assert len(names._held) == 1
    assert names.name(3) == "row 4 of its task (d.png)"
    silent = RowNames([vit()])
    list(silent.watch(batches))
    assert not silent._held


def test_a_task_ends_when_too_many_rows_have_failed_and_says_what_failed(vit, file):
    rows = [b"text", b"\xff\xd8\xff", None, file, b"text"] * 30
    read = []

    def batches():
        for start in range(0, len(rows), 10):
            read.append(start)
            yield pa.array(rows[start : start + 10])

    with pytest.raises(FailureRateError) as raised:
        compute(batches(), vit(max_failure_rate=0.7))
    said = str(raised.value)
    assert "rows failed, more than max_failure_rate=0.7 allows: not_an_image " in said
    assert "incomplete " in said or "decode_error " in said
    assert "null_input" not in said
    assert "\n" not in said
    assert isinstance(raised.value, RuntimeError)


@pytest.mark.parametrize(
    ("rows", "rate"),
    [
        ([b"text"] * 99 + [None] * 500, 0.01),
        ([b"text"] * 100, 1.0),
        ([b"text"] * 120, None),
    ],
    ids=["fewer than a hundred", "all of them may", "off"],
)
def test_a_task_goes_on_where_failures_are_allowed(vit, rows, rate):
    given = compute([pa.array(rows, pa.binary())], vit(max_failure_rate=rate))
    assert given == [None] * len(rows) or all(not each.is_valid for each in given)
    assert len(given) == len(rows)


def test_a_source_that_is_all_wrong_is_not_read_to_its_end(vit):
    read = []

    def batches():
        for number in range(1_000):
            read.append(number)
            yield pa.array([b"text"] * 100)

    with pytest.raises(FailureRateError, match="not_an_image"):
        compute(batches(), vit(max_failure_rate=0.5))
    assert len(read) < 100


def test_texts_are_judged_as_well(checkpoints):
    operator = ClipTextEmbedding(model_name=str(checkpoints / "clip"), max_failure_rate=0.5)
    assert sum(map(len, embed_texts([pa.array([None] * 300, pa.string())], operator, TASK))) == 300


def test_a_report_has_the_commonest_statuses_with_an_example_of_each():
    counts = {"ok": 50, "null_input": 900, "http_error": 40, "timeout": 60}
    examples = {"http_error": "the server answered 404", "timeout": "nothing within 30 s"}
    check_failure_rate(counts, 0.7, examples)
    with pytest.raises(FailureRateError) as raised:
        check_failure_rate(counts, 0.6, examples)
    assert str(raised.value) == (
        "100 of 150 rows failed, more than max_failure_rate=0.6 allows: timeout 60 (nothing "
        "within 30 s); http_error 40 (the server answered 404)"
    )


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan"), "half", True])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(InvalidOptionError, match="max_failure_rate"):
        ImageViTEmbedding(max_failure_rate=rate)
