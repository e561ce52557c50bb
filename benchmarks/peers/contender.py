"""What the contenders share: their command line, a measured job, and the model in plain PyTorch."""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

CORE_COUNT = 2


class Work(NamedTuple):
    """Parquet of (id, content) to Parquet of (id, embedding)."""

    source: str
    checkpoint: str
    output: str
    image_size: int
    batch_size: int


def measure(prepare: Callable[[Work], Callable[[], float | None]]) -> None:
    """Read the command line, embed all rows twice, and print the seconds of the second time.

    Args:
        prepare: Returns the job, which may measure its seconds itself.
    """
    parser = argparse.ArgumentParser()
    for name, kind in Work.__annotations__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, required=True)
    embed = prepare(Work(**vars(parser.parse_args())))
    embed()
    started = time.perf_counter()
    seconds = embed()
    elapsed = time.perf_counter() - started
    # On a line of its own, which comes last, whatever libraries print.
    print(f"\n{elapsed if seconds is None else seconds}")


class TorchModel:
    """A CLIP or ViT of transformers on one core; its images are resized to squares before."""

    def __init__(self, checkpoint: str, thread_count: int = 1) -> None:
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
