"""The body of the caption functions over plain Arrow: right captions, in order, in any batch."""

import io

import pyarrow as pa
import pytest
import torch
from PIL import Image

from caption_checkpoints import write_qwen_vl
from caption_oracle import caption, generated_tokens, parts
from oracles import draw_pictures, same
from spark_vision import ImageViTEmbedding, QwenVLImageUnderstanding
from spark_vision.errors import InputTypeError, RowFailure
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.task import Task
from spark_vision.models.qwen_vl import QwenVLModel

TASK = Task(gpu_addresses=(), cpus=2)
LENGTH = 12
SIZES = [(75, 100), (300, 200), (40, 40), (500, 120), (75, 100), (29, 200), (90, 30), (64, 95)]
PROMPTS = [
    "What is it?",
    None,
    "请给出这张图片的详细描述。",
    "x",
    "  ",
    "green circle " * 9,
    "y",
    "",
]


@pytest.fixture(scope="module")
def pictures():
    return [draw_pictures(1, *size, seed=seed)[0] for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def files(pictures):
    return [encode(picture) for picture in pictures]


def encode(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def qwen(folder, **options):
    options = {"dtype": "float32", "max_caption_length": LENGTH, **options}
    return QwenVLImageUnderstanding(model_name=str(folder), **options)


def captions_of(batches, operator, with_status=False):
    arrays = compute_columns(batches, [operator], TASK, with_status=with_status)
    return [value for (array,) in arrays for value in array.to_pylist()]


def test_captions_are_those_of_transformers_on_each_row_whatever_the_batches(
    checkpoints, pictures, files
):
    folder = checkpoints / "qwen"
    default = qwen(folder).prompt
    true = [
        caption(folder, picture, prompt if prompt and prompt.strip() else default, LENGTH)
        for picture, prompt in zip(pictures, PROMPTS, strict=True)
    ]
    assert len(set(true)) == len(true)
    pairs = (pa.array(files), pa.array(PROMPTS))
    cut = [
        (pa.array(files[:3]), pa.array(PROMPTS[:3])),
        (pa.array(files[3:]), pa.array(PROMPTS[3:])),
    ]
    for batch_size in (1, 3, 8):
        assert captions_of([pairs], qwen(folder, batch_size=batch_size)) == true
    assert captions_of(cut, qwen(folder)) == true
    alone = [caption(folder, picture, default, LENGTH) for picture in pictures]
    assert captions_of([pa.array(files)], qwen(folder)) == alone


def test_a_failed_row_leaves_its_neighbours_as_they_were(checkpoints, files):
    operator = qwen(checkpoints / "qwen", prompt=None)
    strip = encode(torch.zeros(3, 4, 900, dtype=torch.uint8))
    images = [files[0], None, b"text", files[1], strip, files[2], files[3]]
    prompts = ["x", "x", "x", None, "x", "a " * 2000, "\ud800".encode("utf-8", "surrogatepass")]
    prompts = pa.array([p.encode() if isinstance(p, str) else p for p in prompts], pa.binary())
    rows = captions_of([(pa.array(images), prompts.cast(pa.string(), safe=False))], operator, True)
    assert [row["status"] for row in rows] == [
        "ok", "null_input", "not_an_image", "bad_prompt", "bad_dimensions", "bad_prompt", "ok",
    ]  # fmt: skip
    for row in rows:
        is_ok = row["status"] == "ok"
        assert (row["error"] is None, row["caption"] is not None) == (is_ok, is_ok)
        assert (row["truncated"] is not None) == is_ok
    (alone,) = captions_of([(pa.array(files[:1]), pa.array(["x"]))], operator)
    assert rows[0]["caption"] == alone


def test_failed_rows_get_what_on_error_says(checkpoints, files):
    images = pa.array([files[0], b"text"])
    first, failed = captions_of([images], qwen(checkpoints / "qwen", on_error="zero"))
    assert first
    assert failed == ""
    assert captions_of([images], qwen(checkpoints / "qwen"))[1] is None
    with pytest.raises(RowFailure, match="not_an_image"):
        captions_of([images], qwen(checkpoints / "qwen", on_error="raise"))


def test_a_caption_that_is_cut_says_so_and_is_ok(checkpoints, pictures, files):
    folder = checkpoints / "qwen"
    operator = qwen(folder, max_caption_length=20, prompt="x")
    stops = parts(folder)[1].generation_config.eos_token_id
    true = [generated_tokens(folder, picture, "x", 20)[-1] not in stops for picture in pictures]
    rows = captions_of([pa.array(files)], operator, with_status=True)
    assert [row["truncated"] for row in rows] == true
    assert {True, False} == set(true)
    assert {(row["status"], row["error"]) for row in rows} == {("ok", None)}


def test_an_empty_caption_is_an_empty_string(tmp_path, files):
    every = list(range(404))
    folder = write_qwen_vl(tmp_path / "silent", generation={"eos_token_id": every})
    rows = captions_of([pa.array(files[:2])], qwen(folder), with_status=True)
    ended = {"caption": "", "status": "ok", "error": None, "truncated": False}
    assert rows == [ended, ended]


def test_a_batch_that_fails_is_halved_until_the_row_at_fault_is_alone(
    checkpoints, pictures, files, monkeypatch
):
    operator = qwen(checkpoints / "qwen", batch_size=8)
    true = captions_of([pa.array(files)], operator)
    generate = QwenVLModel.generate
    sizes = []

    def fragile(self, batch, scaling, settings):
        sizes.append(len(batch.grids))
        if len(batch.grids) > 3:
            raise torch.OutOfMemoryError("no memory")
        # The third picture, of 40×40 pixels, is the only one with such a grid.
        if [1, 4, 4] in batch.grids.tolist():
            raise RuntimeError("bad kernel")
        return generate(self, batch, scaling, settings)

    monkeypatch.setattr(QwenVLModel, "generate", fragile)
    rows = captions_of([pa.array(files)], operator, with_status=True)
    assert [row["status"] for row in rows] == ["ok"] * 2 + ["model_error"] + ["ok"] * 5
    assert [row["caption"] for row in rows] == [*true[:2], None, *true[3:]]
    assert max(sizes) == 8


def test_the_model_gets_eight_batches_at_once(checkpoints, files, monkeypatch):
    generate = QwenVLModel.generate
    sizes = []

    def counted(self, batch, scaling, settings):
        sizes.append(len(batch.grids))
        return generate(self, batch, scaling, settings)

    monkeypatch.setattr(QwenVLModel, "generate", counted)
    operator = qwen(checkpoints / "qwen", batch_size=1)
    alone = captions_of([pa.array(files)], operator)
    assert captions_of([pa.array(files + files[:4])], operator) == alone + alone[:4]
    assert sizes == [8, 8, 4]


def test_drawn_captions_come_again_in_other_batches(checkpoints, files):
    def drawn(files, **options):
        operator = qwen(
            checkpoints / "qwen", do_sample=True, temperature=1.5, prompt="x", **options
        )
        return captions_of([pa.array(files)], operator)

    first = drawn(files, batch_size=4)
    assert drawn(files, batch_size=3) == first
    assert drawn(files[::-1], batch_size=8) == first[::-1]
    assert drawn(files, seed=1) != first


def test_several_operators_share_the_rows(checkpoints, files):
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), batch_size=3)
    operator = qwen(checkpoints / "qwen", batch_size=2, max_pixels=56 * 56)
    images = pa.array([files[0], b"text", *files[1:]])
    together = list(compute_columns([images], [dino, operator], TASK, with_status=True))
    vectors = [row for array, _ in together for row in array.to_pylist()]
    captions = [row for _, array in together for row in array.to_pylist()]
    assert [row["status"] for row in vectors] == [row["status"] for row in captions]
    assert [row["status"] for row in vectors] == ["ok", "not_an_image", *["ok"] * 7]
    assert [row["caption"] for row in captions] == captions_of([images], operator)
    (alone,) = (array for (array,) in compute_columns([images], [dino], TASK))
    ours = torch.tensor([row["embedding"] for row in vectors if row["embedding"]])
    assert same(ours, torch.tensor([row for row in alone.to_pylist() if row]))


def test_prompts_that_are_no_strings_are_refused(checkpoints, files):
    with pytest.raises(InputTypeError, match=r"caption_image got a column of int64"):
        captions_of([(pa.array(files[:1]), pa.array([1]))], qwen(checkpoints / "qwen"))
