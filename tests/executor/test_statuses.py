"""Every status that a row may have, provoked by what really comes in."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints as writers
from caption_checkpoints import write_qwen_vl
from encoded_images import encode, photo, png_with_size
from local_http_server import serve, status_answer
from spark_vision import ClipTextEmbedding, ImageLimits, ImageViTEmbedding, QwenVLImageUnderstanding
from spark_vision.errors import Status
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.embedding import embed_texts
from spark_vision.executor.task import Task

TASK = Task(gpu_addresses=(), cpus=2)
PAGE = Path(__file__).parents[2] / "docs" / "statuses.md"
PHOTO = encode(photo(60, 50), "JPEG")
PNG = encode(photo(60, 50), "PNG")
# A picture that its model sees in full: without resizing and cropping.
AS_IT_IS = {"do_resize": False, "do_center_crop": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    writers.write_dinov2(folder / "dinov2")
    writers.write_clip(folder / "clip")
    write_qwen_vl(folder / "qwen")
    weights = writers.write_dinov2(folder / "broken") / "model.safetensors"
    tensors = load_file(weights)
    tensors["layernorm.weight"] = torch.full_like(tensors["layernorm.weight"], torch.nan)
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture
def server():
    with serve() as local:
        yield local


@pytest.fixture
def embed(folders, tmp_path):
    """Gives the struct of one image's row."""

    def compute(image, model="dinov2", **options):
        reach = {"allow_hosts": ("127.0.0.1",), "allow_paths": (str(tmp_path),)}
        operator = ImageViTEmbedding(model_name=str(folders / model), **{**reach, **options})
        array = image if isinstance(image, pa.Array) else pa.array([image])
        return one(compute_columns([array], [operator], TASK, with_status=True))

    return compute


@pytest.fixture
def caption(folders):
    """Gives the struct of one image's row, asked by its own prompt."""

    def compute(image, asked, **options):
        operator = QwenVLImageUnderstanding(
            model_name=str(folders / "qwen"), dtype="float32", max_caption_length=2, **options
        )
        batch = (pa.array([image]), pa.array([asked], pa.string()))
        return one(compute_columns([batch], [operator], TASK, with_status=True))

    return compute


def one(given):
    (row,) = [row for (array,) in given for row in array.to_pylist()]
    return row


def expect(row, status):
    assert row["status"] == status
    value = row["embedding"] if "embedding" in row else row["caption"]
    assert (value is not None) == (status == Status.OK)
    assert (row["error"] is None) == (status == Status.OK)
    if row["error"] is not None:
        assert 0 < len(row["error"]) <= 200
        assert row["error"].isprintable()


def test_ok(embed, caption):
    expect(embed(PHOTO), Status.OK)
    expect(caption(PHOTO, "what is it?"), Status.OK)


@pytest.mark.parametrize("image", [pa.array([None], pa.binary()), pa.array(["  \n"])])
def test_null_input(embed, image):
    expect(embed(image), Status.NULL_INPUT)


def test_null_input_of_a_text(folders):
    operator = ClipTextEmbedding(model_name=str(folders / "clip"))
    texts = pa.array([None], pa.string())
    rows = ([array] for array in embed_texts([texts], operator, TASK, with_status=True))
    expect(one(rows), Status.NULL_INPUT)


@pytest.mark.parametrize("data", [b"", b"plain text", b"<!DOCTYPE html><html>", b"%PDF-1.7"])
def test_not_an_image(embed, data):
    expect(embed(data), Status.NOT_AN_IMAGE)


ICON = b"\0\0\1\0\1\0" + bytes([16, 16, 0, 0, 1, 0, 32, 0, 42, 0, 0, 0, 22, 0, 0, 0]) + bytes(42)


@pytest.mark.parametrize("data", [b"8BPS" + bytes(60), ICON])
def test_unsupported_format(embed, data):
    expect(embed(data), Status.UNSUPPORTED_FORMAT)


def test_decode_error(embed):
    damaged = bytearray(PNG)
    damaged[len(PNG) // 2] ^= 0xFF
    expect(embed(bytes(damaged)), Status.DECODE_ERROR)


def test_too_large(embed):
    expect(embed(png_with_size(100_000, 100_000)), Status.TOO_LARGE)
    expect(embed(PHOTO, limits=ImageLimits(max_bytes=100)), Status.TOO_LARGE)
    expect(embed(PHOTO, limits=ImageLimits(max_pixels=100)), Status.TOO_LARGE)


def test_bad_base64(embed):
    expect(embed("/9j/4AAQ?!", image_src_type="image_base64"), Status.BAD_BASE64)


def test_read_error(embed, tmp_path):
    expect(embed(str(tmp_path / "gone\u202e\n.jpg")), Status.READ_ERROR)
    expect(embed(str(tmp_path)), Status.READ_ERROR)


def test_http_error(embed, server):
    expect(embed(server.url("/gone.jpg")), Status.HTTP_ERROR)
    server.answers["/refused.jpg"] = status_answer(403)
    expect(embed(server.url("/refused.jpg")), Status.HTTP_ERROR)


def test_timeout(embed, server):
    server.answers["/slow.jpg"] = lambda request: request.pause(60)
    limits = ImageLimits(fetch_seconds=0.3)
    expect(embed(server.url("/slow.jpg"), limits=limits), Status.TIMEOUT)


def test_blocked(embed, server):
    server.give("/photo.jpg", PHOTO)
    expect(embed(server.url("/photo.jpg")), Status.OK)
    expect(embed(server.url("/photo.jpg"), allow_hosts=()), Status.BLOCKED)
    assert server.requests == ["/photo.jpg"]


def test_blocked_is_a_path_outside_of_those_that_are_allowed(embed, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "photo.jpg"
    outside.write_bytes(PHOTO)
    expect(embed(str(outside)), Status.BLOCKED)


def test_incomplete(embed):
    expect(embed(PHOTO[: len(PHOTO) // 2]), Status.INCOMPLETE)


def test_bad_dimensions(embed, caption):
    expect(embed(png_with_size(0, 10)), Status.BAD_DIMENSIONS)
    expect(caption(encode(photo(2010, 10), "PNG"), "x"), Status.BAD_DIMENSIONS)


@pytest.mark.parametrize("prompt", [None, " ", "a red circle " * 300, "x" * 200_000])
def test_bad_prompt(caption, prompt):
    expect(caption(PHOTO, prompt, prompt=None), Status.BAD_PROMPT)


def test_nonfinite(embed):
    expect(embed(PHOTO, model="broken"), Status.NONFINITE)


def test_out_of_memory(folders):
    # In a process of its own, whose memory ends once its model and threads are there.
    program = f"""
import resource
from pathlib import Path
import pyarrow as pa
from spark_vision import ImageViTEmbedding
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.task import Task

def image(side):
    data = bytes(3 * side * side)
    row = {{"height": side, "width": side, "nChannels": 3, "mode": 16, "data": data}}
    return pa.array([row], pa.struct({{
        **dict.fromkeys(("height", "width", "nChannels", "mode"), pa.int32()), "data": pa.binary()
    }}))

def batches():
    yield image(70)
    large = image(2100)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
    yield large
    yield image(70)

operator = ImageViTEmbedding(
    model_name={str(folders / "dinov2")!r},
    image_processor_kwargs={AS_IT_IS!r},
    batch_size=1,
)
for (rows,) in compute_columns(batches(), [operator], Task((), 1), with_status=True):
    for row in rows.to_pylist():
        print(row["status"], row["error"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == [
        "ok None",
        "out_of_memory the model ran out of memory on this row alone",
        "ok None",
    ], done.stderr


def test_model_error(embed):
    # Smaller than the model's patches.
    tiny = encode(photo(3, 3), "PNG")
    expect(embed(tiny, image_processor_kwargs=AS_IT_IS), Status.MODEL_ERROR)


def test_every_status_is_provoked_here():
    tested = set(re.findall(r"^def test_(\w+)", Path(__file__).read_text(), re.MULTILINE))
    assert {status.value for status in Status} <= tested
