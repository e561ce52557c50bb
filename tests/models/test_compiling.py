"""`torch_compile`: the same vectors from a compiled model, for batches and images of any size."""

import os
import subprocess
import sys

import pytest
import torch

from spark_vision import ClipImageEmbedding, ImageViTEmbedding
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import LoadOptions, load_model
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.models.tokenizer import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(params=["dinov2", "clip"])
def operator(request, checkpoints):
    kind = ImageViTEmbedding if request.param == "dinov2" else ClipImageEmbedding
    return kind(model_name=str(checkpoints / request.param), torch_compile=True)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_vectors_at_any_size(operator):
    checkpoint = resolve_checkpoint(operator)
    scaling = load_preprocessor(checkpoint, None).scaling
    plain = load_model(checkpoint, "float32", CPU)
    torch.compiler.reset()
    compiled = load_model(
        checkpoint, "float32", CPU, LoadOptions(torch_compile=operator.torch_compile)
    )
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    size = plain.modules[0].config.image_size
    for count, height in [(3, size), (5, size), (1, size), (2, 2 * size)]:
        generator = torch.Generator().manual_seed(count)
        shape = (count, 3, height, size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        expected = plain.embed_images(pixels, scaling, operator.effective_pooling)
        vectors = compiled.embed_images(pixels, scaling, operator.effective_pooling)
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    assert graphs["unique_graphs"] > before
    if hasattr(plain, "embed_texts"):
        before = graphs["unique_graphs"]
        tokens = load_tokenizer(checkpoint)(["a cat", "two dogs on a sofa"])
        torch.testing.assert_close(
            compiled.embed_texts(tokens), plain.embed_texts(tokens), atol=1e-5, rtol=1e-5
        )
        assert graphs["unique_graphs"] > before


@pytest.mark.slow
def test_without_a_compiler_loading_says_what_is_missing(checkpoints):
    program = f"""
import torch
from spark_vision.errors import InvalidOptionError
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import load_model
from spark_vision.models.families import LoadOptions
from pathlib import Path
try:
    load_model(
        open_folder(Path({str(checkpoints / "dinov2")!r})), "float32", torch.device("cpu"),
        LoadOptions(torch_compile=True),
    )
except InvalidOptionError as error:
    print(error)
"""
    environment = os.environ | {"CXX": "no-such-compiler", "PATH": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout.startswith("torch_compile got True, but torch.compile fails on ")
    assert "install what it needs on the executors" in done.stdout
