"""The body of the embedding functions over plain Arrow: right vectors, in order, in any batch."""

import io
import itertools
import warnings

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
import transformers
from PIL import Image

from oracles import draw_pictures, same
from spark_vision import ClipImageEmbedding, ClipTextEmbedding, ImageViTEmbedding
from spark_vision.errors import (
    InputTypeError,
    InvalidOptionError,
    RowFailure,
    UnsupportedCheckpointError,
)
from spark_vision.executor import model_access
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.devices import MAX_KEPT_BYTES
from spark_vision.executor.embedding import embed_texts
from spark_vision.executor.task import Task

TASK = Task(gpu_addresses=(), cpus=2)
WORDS = "red green blue yellow circle square triangle left right above below of a the big small"


@pytest.fixture(scope="module")
def pictures():
    return draw_pictures(40, seed=5)


@pytest.fixture(scope="module")
def files(pictures):
    return [encode(picture) for picture in pictures]


def encode(picture, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, kind)
    return buffer.getvalue()


def embed_images(arrays, operator, task, **options):
    return (columns[0] for columns in compute_columns(arrays, [operator], task, **options))


def vectors_of(arrays, operator, task=TASK):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = list(embed_images(arrays, operator, task))
    return torch.tensor([row for array in given for row in array.to_pylist()])


def hugging_face_vectors(folder, pictures):
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
    with torch.inference_mode():
        tokens = model(pixels).last_hidden_state[:, 0]
    return torch.nn.functional.normalize(tokens, dim=-1)


def test_vectors_are_hugging_faces_in_the_order_of_the_rows(checkpoints, pictures, files):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), batch_size=7)
    ours = vectors_of([pa.array(files[:3]), pa.array(files[3:])], operator)
    theirs = hugging_face_vectors(checkpoints / "dinov2", pictures)
    assert same(ours, theirs)
    assert not same(ours.roll(1, 0), theirs)


@pytest.mark.parametrize("batch_size", [1, 3, 32, 500])
@pytest.mark.parametrize("cuts", [[], [1], [13, 14, 15]])
def test_a_vector_does_not_depend_on_its_batch(checkpoints, files, batch_size, cuts):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    alone = vectors_of([pa.array([file]) for file in files], operator)
    bounds = [0, *cuts, len(files)]
    arrays = [pa.array(files[start:end], pa.binary()) for start, end in itertools.pairwise(bounds)]
    chosen = ImageViTEmbedding(model_name=operator.model_name, batch_size=batch_size)
    torch.testing.assert_close(vectors_of(arrays, chosen), alone, atol=1e-5, rtol=0)


def test_a_failed_row_leaves_its_neighbours_as_they_were(checkpoints, files):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), batch_size=4)
    good = vectors_of([pa.array(files[:6])], operator)
    mixed = [files[0], None, files[1], b"", b"text", files[2], files[3][:200], *files[4:6]]
    (array,) = embed_images([pa.array(mixed)], operator, TASK, with_status=True)
    rows = array.to_pylist()
    assert [row["status"] for row in rows] == [
        "ok", "null_input", "ok", "not_an_image", "not_an_image", "ok", "incomplete", "ok", "ok",
    ]  # fmt: skip
    assert all((row["error"] is None) == (row["status"] == "ok") for row in rows)
    kept = torch.tensor([row["embedding"] for row in rows if row["status"] == "ok"])
    torch.testing.assert_close(kept, good[[0, 1, 2, 4, 5]], atol=1e-5, rtol=0)


def test_raise_names_the_failure(checkpoints, files):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), on_error="raise")
    with pytest.raises(RowFailure, match="not_an_image"):
        list(embed_images([pa.array([files[0], b"text"])], operator, TASK))


def test_images_that_stay_of_different_sizes_are_computed(checkpoints, files):
    operator = ImageViTEmbedding(
        model_name=str(checkpoints / "dinov2"),
        image_processor_kwargs={"do_center_crop": False},
        batch_size=8,
    )
    tall = [encode(picture) for picture in draw_pictures(4, height=120, width=60, seed=9)]
    mixed = [each for pair in zip(files[:4], tall, strict=True) for each in pair]
    together = vectors_of([pa.array(mixed)], operator)
    alone = vectors_of([pa.array([file]) for file in mixed], operator)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_tokens_come_as_lists_of_vectors(checkpoints, files):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), pooling="tokens")
    (array,) = embed_images([pa.array(files[:2])], operator, TASK)
    cls = vectors_of([pa.array(files[:2])], ImageViTEmbedding(model_name=operator.model_name))
    tokens = torch.tensor(array.to_pylist())
    assert tokens.shape[1] == 1 + (28 // 7) ** 2
    torch.testing.assert_close(tokens[:, 0], cls, atol=1e-5, rtol=0)


def test_unnormalised_vectors_keep_their_length(checkpoints, files):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), normalize=False)
    raw = vectors_of([pa.array(files[:5])], operator)
    unit = vectors_of([pa.array(files[:5])], ImageViTEmbedding(model_name=operator.model_name))
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), unit, atol=1e-5, rtol=0)


def test_no_rows_and_empty_arrays_give_no_rows(checkpoints):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    assert list(embed_images([], operator, TASK)) == []
    given = embed_images([pa.array([], pa.binary())] * 2, operator, TASK)
    assert sum(len(array) for array in given) == 0


def test_paths_are_fetched_and_missing_ones_fail_alone(checkpoints, files, tmp_path):
    operator = ImageViTEmbedding(
        model_name=str(checkpoints / "dinov2"), batch_size=4, allow_paths=str(tmp_path)
    )
    paths = []
    for number, file in enumerate(files[:10]):
        (tmp_path / f"{number}.png").write_bytes(file)
        paths.append(str(tmp_path / f"{number}.png"))
    paths.insert(5, str(tmp_path / "missing.png"))
    (array,) = embed_images([pa.array(paths)], operator, TASK, with_status=True)
    rows = array.to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["read_error"] + ["ok"] * 5
    del rows[5]
    fetched = torch.tensor([row["embedding"] for row in rows])
    read = vectors_of([pa.array(files[:10])], operator)
    torch.testing.assert_close(fetched, read, atol=1e-5, rtol=0)


def test_statuses_are_counted_as_rows_are_given_back(checkpoints, files):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    counts = []
    list(embed_images([pa.array([files[0], None])], operator, TASK, counts=[counts.append]))
    assert counts == [{"ok": 1, "null_input": 1}]


def test_a_column_of_another_type_is_refused(checkpoints):
    image = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    with pytest.raises(InputTypeError, match="int64"):
        list(embed_images([pa.array([1])], image, TASK))
    text = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    with pytest.raises(InputTypeError, match="allowed: string"):
        list(embed_texts([pa.array([1])], text, TASK))


def test_texts_and_images_of_one_clip_share_a_model_and_a_space(checkpoints, files, monkeypatch):
    monkeypatch.setattr(model_access, "_loaded", type(model_access._loaded)())
    name = str(checkpoints / "clip")
    image = vectors_of([pa.array(files[:3])], ClipImageEmbedding(model_name=name))
    (array,) = embed_texts([pa.array(["a red circle"])], ClipTextEmbedding(model_name=name), TASK)
    assert len(array.to_pylist()[0]) == image.shape[1]
    assert len(model_access._loaded) == 1


def test_text_vectors_are_hugging_faces_and_equal_texts_are_computed_once(checkpoints):
    folder = checkpoints / "clip"
    distinct = [" ".join(WORDS.split()[start : start + 4]) for start in range(12)]
    texts = [*distinct, None, *distinct[::-1], *([distinct[0]] * 1000)]
    operator = ClipTextEmbedding(model_name=str(folder), batch_size=5)
    list(embed_texts([pa.array(texts[:1])], operator, TASK))
    loaded = next(reversed(model_access._loaded.values()))
    seen = []
    hook = loaded.model._model.text_model.register_forward_hook(
        lambda module, arguments, output: seen.append(len(output.last_hidden_state))
    )
    given = list(embed_texts([pa.array(texts)], operator, TASK, with_status=True))
    hook.remove()
    assert sum(seen) == len(distinct)
    rows = [row for array in given for row in array.to_pylist()]
    assert [row["status"] for row in rows].count("null_input") == 1
    assert rows[12]["embedding"] is None

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = tokenizer(distinct, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.text_model(**tokens)
        theirs = model.text_projection(output.pooler_output)
    theirs = torch.nn.functional.normalize(theirs, dim=-1)
    assert same(torch.tensor([row["embedding"] for row in rows[:12]]), theirs)
    assert same(torch.tensor([row["embedding"] for row in rows[13:25]]), theirs.flip(0))


def test_a_checkpoint_that_was_replaced_is_loaded_again(files, tmp_path):
    import checkpoints as write

    folder = tmp_path / "dinov2"
    operator = ImageViTEmbedding(model_name=str(folder))
    write.write_dinov2(folder)
    before = vectors_of([pa.array(files[:4])], operator)
    write.write_dinov2(folder, seed=7)
    after = vectors_of([pa.array(files[:4])], operator)
    assert not same(before, after)


def test_a_worker_keeps_few_models(files, tmp_path, monkeypatch):
    import checkpoints as write

    monkeypatch.setattr(model_access, "_loaded", type(model_access._loaded)())
    for seed in range(4):
        folder = write.write_dinov2(tmp_path / str(seed), seed=seed)
        vectors_of([pa.array(files[:2])], ImageViTEmbedding(model_name=str(folder)))
    assert len(model_access._loaded) == model_access.KEPT_MODEL_COUNT


def test_memory_is_bounded_by_what_is_in_flight_and_not_by_the_batch(checkpoints, tmp_path):
    """100 photographs of 24 MB when decoded would take 2.4 GB; one thread holds one."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 400, 3), np.uint8)
    photograph = Image.fromarray(noise).resize((3200, 2500), Image.Resampling.NEAREST)
    photograph.save(tmp_path / "large.jpg", quality=50)
    content = (tmp_path / "large.jpg").read_bytes()
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    list(embed_images([pa.array([content] * 2)], operator, TASK))
    batch = pa.array([content] * 100)
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    peak_bytes = 0

    def watched(arrays):
        nonlocal peak_bytes
        for array in embed_images(arrays, operator, TASK):
            peak_bytes = max(peak_bytes, process.memory_info().rss)
            yield array

    arrays = [batch.slice(start, 10) for start in range(0, 100, 10)]
    assert sum(len(array) for array in watched(arrays)) == 100
    # The allocator may keep what earlier images freed; together they would still be 2.4 GB.
    assert peak_bytes - before_bytes < MAX_KEPT_BYTES + 200 * 2**20


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 2, "width": 2}, "do_center_crop": False},
        {"image_std": [0, 0, 0]},
        {"image_mean": [0.5, 0.5]},
        {"rescale_factor": "x"},
        {"resample": 99},
    ],
)
def test_wrong_processor_settings_fail_the_job_and_not_every_row(checkpoints, files, settings):
    operator = ImageViTEmbedding(
        model_name=str(checkpoints / "dinov2"), image_processor_kwargs=settings
    )
    with pytest.raises((InvalidOptionError, UnsupportedCheckpointError)):
        list(embed_images([pa.array(files[:2])], operator, TASK))


def test_strings_that_are_not_utf8_end_no_task(checkpoints):
    broken = pa.array([b"a red circle", b"\xff\xfe"], pa.binary()).view(pa.string())
    text = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    (array,) = embed_texts([broken], text, TASK, with_status=True)
    assert [row["status"] for row in array.to_pylist()] == ["ok", "ok"]
    image = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    (array,) = embed_images([broken], image, TASK, with_status=True)
    assert [row["status"] for row in array.to_pylist()] == ["blocked", "read_error"]
