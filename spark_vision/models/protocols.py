"""What a loaded model can do, in the terms of the code that feeds it.

These protocols are the one place where a model is reached, whether it lives in the Python worker or
in a process of its own: uint8 pixels or token ids go in, float32 vectors come out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class PixelScaling:
    """How uint8 pixels become the floats that the model was trained on.

    The result is `(pixel * rescale_factor - mean) / std`, per channel, as in Hugging Face's image
    processors. A step that a processor switches off has rescale_factor 1, or mean 0 and std 1.
    """

    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@runtime_checkable
class ImageEmbedder(Protocol):
    """A model that turns pixels into vectors."""

    def embed_images(
        self, pixels: torch.Tensor, scaling: PixelScaling, pooling: str
    ) -> torch.Tensor:
        """Compute one vector, or one row of token vectors, per image.

        Args:
            pixels: uint8 `[images, 3, height, width]` RGB on the CPU, any memory format.
            scaling: Applied once per batch on the model's device.
            pooling: `cls`, `mean`, `pooler` or `tokens`; `projection` for CLIP-like models.

        Returns:
            float32 `[images, dimension]` on the CPU, contiguous, not normalised;
            `[images, tokens, dimension]` for `tokens`.
        """
        ...


@runtime_checkable
class TextEmbedder(Protocol):
    """A model that turns token ids into vectors of the space its images live in."""

    def embed_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute one vector per text.

        Args:
            tokens: What the checkpoint's tokenizer gives: int64 `[texts, tokens]` tensors by name.

        Returns:
            float32 `[texts, dimension]` on the CPU, contiguous, not normalised.
        """
        ...


class ImagePreprocessor(Protocol):
    """The weight-free half of a checkpoint: from a decoded image to the pixels its model takes."""

    @property
    def scaling(self) -> PixelScaling:
        """The rescale and normalise steps, left to the model's device."""
        ...

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Resize and crop one image.

        Args:
            image: uint8 `[3, height, width]` RGB, planar or interleaved in memory.

        Returns:
            uint8 `[3, model_height, model_width]`.
        """
        ...


class TextTokenizer(Protocol):
    """The weight-free half of a text tower."""

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Tokenize, pad and truncate as the checkpoint's own tokenizer does for its model."""
        ...
