"""What the contenders share: their command line, rounds on request, and the model in plain PyTorch.

A contender is a process that stays: it answers each line of its standard input with the seconds
that it took to embed all rows once.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

CORE_COUNT = 2


class Work(NamedTuple):
    """Parquet of (id, content) to Parquet of (id, embedding)."""

    source: str
    checkpoint: str
    output: str
    image_size: int
    batch_size: int


def answer_rounds(prepare: Callable[[Work], Callable[[], object]]) -> None:
    """Read the command line, and embed all rows once per line of standard input."""
    parser = argparse.ArgumentParser()
    for name, kind in Work.__annotations__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, required=True)
    work = Work(**vars(parser.parse_args()))
    # Libraries print; only the seconds may reach the other side.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    embed = prepare(work)
    for _ in sys.stdin:
        started = time.perf_counter()
        embed()
        print(time.perf_counter() - started, file=answers, flush=True)


class TorchModel:
    """A CLIP or ViT of transformers on one core; its images are resized to squares before."""

    def __init__(self, checkpoint: str, thread_count: int = 1) -> None:
        from transformers import AutoImageProcessor, AutoModel

        torch.set_num_threads(thread_count)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        mean, std = (np.array(each) for each in (processor.image_mean, processor.image_std))
        self._scale = torch.tensor(1 / (255 * std), dtype=torch.float32)[:, None, None]
        self._shift = torch.tensor(-mean / std, dtype=torch.float32)[:, None, None]
        self._model = AutoModel.from_pretrained(checkpoint).eval()

    @torch.inference_mode()
    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Embed uint8 `[images, height, width, 3]`; returns float32 `[images, 768]` of length 1."""
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) * self._scale + self._shift
        if hasattr(self._model, "get_image_features"):
            features = self._model.get_image_features(pixel_values=scaled)
            vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
        else:
            vectors = self._model(pixel_values=scaled).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(vectors, dim=-1).numpy()


class PillowModel:
    """The model with decoding and resizing by Pillow; a broken image has a vector of NaN."""

    def __init__(self, work: Work) -> None:
        self._model = TorchModel(work.checkpoint)
        self._size = work.image_size, work.image_size

    def embed(self, contents: Sequence[bytes]) -> np.ndarray:
        """Embed encoded images; returns float32 `[images, 768]`."""
        images = [self._decode(content) for content in contents]
        blank = np.zeros((*self._size, 3), np.uint8)
        vectors = self._model.embed(np.stack([blank if i is None else i for i in images]))
        vectors[[image is None for image in images]] = np.nan
        return vectors

    def _decode(self, content: bytes) -> np.ndarray | None:
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except (OSError, SyntaxError, ValueError):
            return None
        return np.asarray(image.resize(self._size, Image.Resampling.BILINEAR))


@cache
def load_model(work: Work) -> PillowModel:
    """Load the model once per process."""
    return PillowModel(work)


def parquet_files(work: Work) -> list[str]:
    """List the files of the source."""
    return [str(path) for path in sorted(Path(work.source).glob("*.parquet"))]
