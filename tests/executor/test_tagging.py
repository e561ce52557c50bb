"""Tags of images and of vectors, against Hugging Face's own zero-shot pipeline."""

import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import checkpoints as small_checkpoints
from oracles import draw_pictures
from spark_vision import ClipImageEmbedding, ClipImageTags, ClipVectorTags
from spark_vision.demo import checkpoint_path
from spark_vision.demo.rendering import render
from spark_vision.demo.scenes import COLOURS, SHAPES, Scene, SceneObject
from spark_vision.errors import (
    FailureRateError,
    InputTypeError,
    InvalidOptionError,
    RowFailure,
    UnsupportedCheckpointError,
)
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.tagging import Tagger, tag_vectors
from spark_vision.executor.task import Task
from spark_vision.models import clip
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import check_operator

TASK = Task(gpu_addresses=(), cpus=2)
TAGS = ["red circle", "blue square", "yellow triangle", "tree", "house"]
CHINESE_TAGS = ["红色的圆形", "蓝色的正方形", "绿色三角形", "房子"]
SIGLIP_LENGTH = 64  # of the pipeline, whatever the checkpoint's
WRITERS = {
    "clip": (small_checkpoints.write_clip, TAGS, "a photo of a {}"),
    "chinese_clip": (small_checkpoints.write_chinese_clip, CHINESE_TAGS, "一张{}的图片"),
    "siglip": (small_checkpoints.write_siglip, TAGS, "a photo of a {}"),
    "siglip2": (
        lambda folder: small_checkpoints.write_siglip(folder, second=True),
        TAGS,
        "this is a photo of {}.",
    ),
    "siglip2_naflex": (small_checkpoints.write_siglip2, TAGS, "this is a photo of {}."),
}


def write_logits(folder, scale, bias=None):
    """Replace the scale and the bias of a checkpoint, whose own leave all scores alike."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["logit_scale"] = torch.full_like(weights["logit_scale"], np.log(scale))
    if bias is not None:
        weights["logit_bias"] = torch.full_like(weights["logit_bias"], bias)
    save_file(weights, path, {"format": "pt"})


@pytest.fixture(scope="module", params=WRITERS)
def case(request, tmp_path_factory):
    """A checkpoint's folder, tags in its language, and a template."""
    write, tags, template = WRITERS[request.param]
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_checkpoints, "CONTEXT_LENGTH", SIGLIP_LENGTH)
        write(folder)
    write_logits(folder, 12.0, -2.0 if request.param.startswith("siglip") else None)
    return folder, tags, template


@pytest.fixture(scope="module")
def pictures():
    drawn = draw_pictures(12, seed=4)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in drawn]


@pytest.fixture(scope="module")
def files(pictures):
    return [encode(picture) for picture in pictures]


@pytest.fixture
def folder(checkpoints, tmp_path):
    """A CLIP of this test alone."""
    return Path(shutil.copytree(checkpoints / "clip", tmp_path / "clip"))


def encode(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def run(arrays, operator, **options):
    parts = compute_columns(arrays, [operator], TASK, **options)
    return [row for (part,) in parts for row in part.to_pylist()]


def run_vectors(arrays, operator, **options):
    parts = tag_vectors(arrays, operator, TASK, **options)
    return [row for part in parts for row in part.to_pylist()]


def embed(files, folder, **options):
    operator = ClipImageEmbedding(model_name=str(folder), **options)
    parts = compute_columns([pa.array(files)], [operator], TASK)
    return pa.concat_arrays([part for (part,) in parts])


def pipeline_tags(folder, pictures, tags, template):
    pipeline = transformers.pipeline(
        "zero-shot-image-classification",
        model=transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        image_processor=transformers.AutoImageProcessor.from_pretrained(
            folder, backend="torchvision"
        ),
    )
    return [
        pipeline(picture, candidate_labels=tags, hypothesis_template=template)
        for picture in pictures
    ]


def differences(ours, theirs):
    """Return the greatest difference of two rows' scores, and whether their tags' order is one."""
    worst, same_order = 0.0, True
    for mine, yours in zip(ours, theirs, strict=True):
        same_order &= [each["tag"] for each in mine] == [each["label"] for each in yours]
        scores = {each["label"]: each["score"] for each in yours}
        worst = max([worst, *(abs(each["score"] - scores[each["tag"]]) for each in mine)])
    return worst, same_order


def assert_same(ours, theirs):
    """Check that rows have the same tags, and scores that differ by rounding only."""
    for mine, yours in zip(ours, theirs, strict=True):
        assert [each["tag"] for each in mine] == [each["tag"] for each in yours]
        scores = [each["score"] for each in yours]
        assert [each["score"] for each in mine] == pytest.approx(scores, abs=1e-5)


def test_tags_and_scores_are_those_of_the_pipeline(case, pictures, files):
    folder, tags, template = case
    operator = ClipImageTags(
        model_name=str(folder), tags=tags, template=template, top_k=len(tags), batch_size=5
    )
    ours = run([pa.array(files[:3]), pa.array(files[3:])], operator)
    theirs = pipeline_tags(folder, pictures, tags, template)
    worst, same_order = differences(ours, theirs)
    assert worst < 1e-5
    assert same_order
    assert differences(ours[1:] + ours[:1], theirs)[0] > 0.01
    other = ClipImageTags(model_name=str(folder), tags=tags, template="{}", top_k=len(tags))
    assert differences(run([pa.array(files)], other), theirs)[0] > 0.01


def test_scores_of_clip_add_up_to_one_and_those_of_siglip_do_not(case, files):
    folder, tags, template = case
    operator = ClipImageTags(model_name=str(folder), tags=tags, template=template, top_k=99)
    sums = [sum(each["score"] for each in row) for row in run([pa.array(files)], operator)]
    if folder.name.startswith("siglip"):
        assert max(abs(1 - each) for each in sums) > 0.5
    else:
        assert sums == pytest.approx([1.0] * len(files), abs=1e-5)


def test_vectors_give_the_tags_of_their_images(case, files):
    folder, tags, template = case
    shared = {"model_name": str(folder), "tags": tags, "template": template, "top_k": 2}
    expected = run([pa.array(files)], ClipImageTags(**shared))
    for normalized in (True, False):
        vectors = embed(files, folder, normalize=normalized)
        for array in (vectors, vectors.cast(pa.list_(pa.float64()))):
            given = run_vectors([array[:5], array[5:]], ClipVectorTags(**shared))
            assert_same(given, expected)


def test_the_demo_checkpoint_names_what_is_drawn():
    random = np.random.default_rng(0)
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    drawn = [
        render(Scene((SceneObject("large", *name.split()),), ()), random).image for name in names
    ]
    folder = checkpoint_path("clip")
    operator = ClipImageTags(model_name=folder, tags=names, top_k=len(names))
    ours = run([pa.array([encode(picture) for picture in drawn])], operator)
    worst, _ = differences(ours[:8], pipeline_tags(folder, drawn[:8], names, "a photo of a {}"))
    assert worst < 1e-5
    best = [row[0]["tag"] for row in ours]
    assert sum(mine == name for mine, name in zip(best, names, strict=True)) >= 40
    assert sum(mine == name for mine, name in zip(best, names[::-1], strict=True)) <= 4


def test_a_bad_image_fails_only_its_row(checkpoints, files):
    operator = ClipImageTags(model_name=str(checkpoints / "clip"), tags=TAGS)
    good = run([pa.array(files[:2])], operator)
    mixed = pa.array([files[0], None, b"", b"text", files[1], files[2][:200]])
    rows = run([mixed], operator, with_status=True)
    assert [row["status"] for row in rows] == [
        "ok", "null_input", "not_an_image", "not_an_image", "ok", "incomplete",
    ]  # fmt: skip
    assert [row["tags"] is None for row in rows] == [row["status"] != "ok" for row in rows]
    assert_same([rows[0]["tags"], rows[4]["tags"]], good)
    assert all(bool(row["error"]) == (row["status"] != "ok") for row in rows)


def test_a_failed_row_has_no_tags_or_fails_the_job_where_asked(checkpoints, files):
    shared = {"model_name": str(checkpoints / "clip"), "tags": TAGS}
    assert run([pa.array([b"text"])], ClipImageTags(**shared, on_error="zero")) == [[]]
    with pytest.raises(RowFailure, match="row 2 of its task: not_an_image"):
        run([pa.array([files[0], b"text"])], ClipImageTags(**shared, on_error="raise"))
    with pytest.raises(FailureRateError, match="not_an_image"):
        run([pa.array([b"text"] * 100)], ClipImageTags(**shared, max_failure_rate=0.5))
    with pytest.raises(RowFailure, match="row 2 of its task: nonfinite"):
        run_vectors(
            [pa.array([[1.0] * 24, [0.0] * 24])], ClipVectorTags(**shared, on_error="raise")
        )


def test_a_vector_without_direction_fails_only_its_row(checkpoints, files):
    operator = ClipVectorTags(model_name=str(checkpoints / "clip"), tags=TAGS, top_k=1)
    vectors = embed(files[:2], checkpoints / "clip").to_pylist()
    nan, infinite, hole = ([bad, *vectors[0][1:]] for bad in (float("nan"), float("inf"), None))
    given = [vectors[0], None, [0.0] * 24, nan, infinite, hole, vectors[1]]
    counts = Counter()
    array = pa.array(given, pa.list_(pa.float32()))
    rows = run_vectors([array], operator, with_status=True, count=counts.update)
    statuses = ["ok", "null_input", *["nonfinite"] * 4, "ok"]
    assert [row["status"] for row in rows] == statuses
    assert [row["tags"] is None for row in rows] == [status != "ok" for status in statuses]
    assert counts == {"ok": 2, "null_input": 1, "nonfinite": 4}
    assert_same([rows[0]["tags"]], run_vectors([pa.array([vectors[0]])], operator))
    assert run_vectors([pa.nulls(2), array[1:2]], operator) == [None] * 3


def test_very_long_and_very_short_vectors_have_a_direction_too(checkpoints, files):
    operator = ClipVectorTags(model_name=str(checkpoints / "clip"), tags=TAGS, top_k=1)
    vectors = np.array(embed(files[:3], checkpoints / "clip").to_pylist())
    expected = run_vectors([pa.array(list(vectors))], operator)
    for factor in (1e-30, 1e30):
        scaled = run_vectors([pa.array(list(vectors * factor))], operator)
        assert_same(scaled, expected)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (pa.array([[1.0] * 24, [1.0] * 23]), "a vector of 23 numbers, and those of .* have 24"),
        (pa.array([[]], pa.list_(pa.float32())), "a vector of 0 numbers"),
        (pa.array([b"image"]), r"a column of binary; allowed: array<float> or array<double>"),
        (pa.array([[1] * 24]), "a column of list<.*int64>"),
        (pa.array([[[1.0]] * 24]), "a column of list<.*list"),
    ],
)
def test_what_is_no_vector_of_the_checkpoint_is_refused(checkpoints, array, said):
    operator = ClipVectorTags(model_name=str(checkpoints / "clip"), tags=TAGS)
    with pytest.raises(InputTypeError, match=said):
        run_vectors([array], operator)


def test_the_tags_are_embedded_once_and_each_image_too(folder, files, monkeypatch):
    texts, images = [], []
    own_texts = clip.ImageTextModel.embed_texts
    own_images = clip.ImageTextModel.embed_images

    def embed_texts(self, tokens):
        texts.append(len(next(iter(tokens.values()))))
        return own_texts(self, tokens)

    def embed_images(self, pixels, *rest):
        images.append(len(pixels))
        return own_images(self, pixels, *rest)

    monkeypatch.setattr(clip.ImageTextModel, "embed_texts", embed_texts)
    monkeypatch.setattr(clip.ImageTextModel, "embed_images", embed_images)
    operator = ClipImageTags(model_name=str(folder), tags=TAGS, batch_size=2)
    for _ in range(3):
        run([pa.array(files[:4]), pa.array(files[4:])], operator)
    run_vectors([pa.array([[1.0] * 24])], operator.convert(ClipVectorTags))
    assert texts == [2, 2, 1]
    assert sum(images) == 3 * len(files)
    run([pa.array(files[:1])], ClipImageTags(model_name=str(folder), tags=TAGS, template="{}"))
    assert sum(texts) == 2 * len(TAGS)


def test_changed_weights_are_seen(folder, files):
    operator = ClipImageTags(model_name=str(folder), tags=TAGS, top_k=9)
    before = run([pa.array(files)], operator)
    write_logits(folder, 40.0)
    after = run([pa.array(files)], operator)
    assert [row[0]["tag"] for row in before] == [row[0]["tag"] for row in after]
    assert all(old[0]["score"] < new[0]["score"] for old, new in zip(before, after, strict=True))


def test_a_row_has_at_most_top_k_tags_and_no_more_than_there_are(checkpoints, files):
    name = str(checkpoints / "clip")
    counts = [
        len(run([pa.array(files[:1])], ClipImageTags(model_name=name, tags=TAGS, top_k=top_k))[0])
        for top_k in (1, 4, 5, 50)
    ]
    assert counts == [1, 4, 5, 5]


def test_equal_scores_are_in_the_order_of_the_tags(checkpoints, monkeypatch):
    tagger = Tagger(ClipVectorTags(model_name=str(checkpoints / "clip"), tags=TAGS, top_k=4), TASK)
    units = torch.eye(2, dtype=torch.float64)
    embedded = tagger._embedded._replace(vectors=units[[1, 0, 1, 0, 0]])
    monkeypatch.setattr(tagger, "_embedded", embedded)
    first, second = tagger.rank(torch.tensor([[2.0, 0.0], [1.0, 2.0]]))
    assert first.indices[:3].tolist() == [1, 3, 4]
    assert second.indices[:2].tolist() == [0, 2]
    assert first.scores[0] == first.scores[2] > first.scores[3]


def test_a_text_that_would_be_cut_is_refused(checkpoints):
    checkpoint = resolve_checkpoint(ClipImageTags(model_name=str(checkpoints / "clip"), tags="a"))
    longest = ClipImageTags(tags=["tree " * 29 + "tree"], template="{}")
    assert check_operator(checkpoint, longest) == 24
    for kind in (ClipImageTags, ClipVectorTags):
        too_long = kind(tags=["tree", "tree " * 30 + "tree"], template="{}")
        with pytest.raises(InvalidOptionError, match=rf"{kind.__name__} got .*tree tree.* shorten"):
            check_operator(checkpoint, too_long)


def test_weights_without_the_terms_of_scores_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["logit_scale"]
    save_file(weights, path, {"format": "pt"})
    operator = ClipImageTags(model_name=str(folder), tags=TAGS)
    with pytest.raises(UnsupportedCheckpointError, match="has no logit_scale in its weights"):
        check_operator(resolve_checkpoint(operator), operator)
    assert embed([encode(Image.new("RGB", (40, 40)))], folder)[0].as_py()


def test_a_text_tower_that_returns_nan_is_named(folder, files):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["text_projection.weight"][:] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(InvalidOptionError, match="tags got 'red circle', for which the text tower"):
        run([pa.array(files[:1])], ClipImageTags(model_name=str(folder), tags=TAGS))
