"""The interfaces of models and of their preprocessing.

A model is used only through these protocols, whether it lives in the Python worker or in the model
server: pixels or token ids go in, float32 vectors or token ids come out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class PixelScaling:
    """How pixels from 0 to 255 are converted to the model's input.

    The result is `(pixel * rescale_factor - mean) / std`, per channel, as in Hugging Face's image
    processors. A disabled step has rescale_factor 1, or mean 0 and std 1.
    """

    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@runtime_checkable
class ImageEmbedder(Protocol):
    """A model that computes vectors of images."""

    def embed_images(
        self, pixels: torch.Tensor, scaling: PixelScaling, pooling: str
    ) -> torch.Tensor:
        """Compute one vector, or one row of token vectors, per image.

        Args:
            pixels: `[images, 3, height, width]` RGB on the CPU, any memory format: uint8, or
                float32 of the same range.
            scaling: Applied once per batch on the model's device.
            pooling: `cls`, `mean`, `pooler` or `tokens`; `projection` for CLIP-like models.

        Returns:
            float32 `[images, dimension]` on the CPU, contiguous, not normalised;
            `[images, tokens, dimension]` for `tokens`.
        """
        ...


@runtime_checkable
class TextEmbedder(Protocol):
    """A model that computes vectors of texts, in the same space as its images."""

    def embed_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute one vector per text.

        Args:
            tokens: Output of the checkpoint's tokenizer: int64 `[texts, tokens]` tensors by name.

        Returns:
            float32 `[texts, dimension]` on the CPU, contiguous, not normalised.
        """
        ...


class LogitTerms(NamedTuple):
    """How the cosine of an image and a text becomes the logit of the text.

    Attributes:
        scale: float32 `[1]`: the factor of the cosine.
        bias: float32 `[1]`: added to it, and the logit's sigmoid is the text's probability. None:
            the probabilities are the softmax over the logits of several texts.
    """

    scale: torch.Tensor
    bias: torch.Tensor | None = None


@runtime_checkable
class TextClassifier(TextEmbedder, Protocol):
    """A model that tells which of several texts describes an image."""

    def logit_terms(self) -> LogitTerms:
        """Return the trained terms of its logits."""
        ...


@dataclass(frozen=True)
class GenerationSettings:
    """How a caption is generated; every value is plain JSON.

    Attributes:
        max_new_tokens: Maximum tokens of a caption, including its stop token.
        do_sample: Sample each token; otherwise take the most probable one (greedy).
        temperature: Divides the logits before sampling.
        top_k: Sample from this many of the most probable tokens; 0 means all.
        top_p: Sample from the most probable tokens whose probabilities add up to this.
        repetition_penalty: Divides the logits of tokens that occurred; None: the checkpoint's.
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float | None = None


class CaptionBatch(NamedTuple):
    """A batch of prompts with one image each; all on the CPU.

    Attributes:
        token_ids: int64 `[images, tokens]`, padded on the left, with one image token per square of
            merged patches.
        attention_mask: int64 `[images, tokens]`: 0 for padding, else 1.
        patches: uint8 `[patches of all images, 3, patch_size, patch_size]` RGB, image after image,
            in the order in which the model merges them.
        grids: int64 `[images, 3]`: frames (1), rows and columns of patches.
        seeds: int64 `[images]`: the sampling seed of each caption.
    """

    token_ids: torch.Tensor
    attention_mask: torch.Tensor
    patches: torch.Tensor
    grids: torch.Tensor
    seeds: torch.Tensor


class GeneratedTokens(NamedTuple):
    """The generated tokens of each row of a batch; all on the CPU.

    Attributes:
        token_ids: int64 `[images, new_tokens]`: the caption and its stop token, then padding.
        lengths: int64 `[images]`: tokens of each caption, without its stop token.
        truncated: bool `[images]`: whether the caption was truncated at `max_new_tokens`.
        finite: bool `[images]`: False if the model returned NaN or infinity at any step.
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor
    truncated: torch.Tensor
    finite: torch.Tensor


@runtime_checkable
class ImageCaptioner(Protocol):
    """A model that generates texts about images."""

    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Generate a text about each image of a batch of any size.

        A row's result does not depend on other rows, except for rounding errors.

        Args:
            batch: The output of `QwenVLInputs.collate`.
            scaling: Applied on the model's device.
            settings: How to generate; stop and padding tokens are the checkpoint's own.
        """
        ...


class ImagePreprocessor(Protocol):
    """The image processor of a checkpoint: from a decoded image to the model's pixels."""

    @property
    def scaling(self) -> PixelScaling:
        """The rescale and normalise steps, which run on the model's device."""
        ...

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which an image is resized before it is cropped.

        An image that is not resized, or to a size that is not known here, keeps its own.
        """
        ...

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Resize and crop one image.

        Args:
            image: uint8 `[3, height, width]` RGB, planar or interleaved in memory.

        Returns:
            `[3, model_height, model_width]`: uint8, or float32 of the same range where the
            checkpoint's processor resizes floats. With a model of variable resolution, the size
            depends on the image.
        """
        ...


@dataclass(frozen=True)
class CaptionInput:
    """One image with its prompt, ready for a batch.

    Attributes:
        token_ids: int64 `[tokens]`.
        patches: uint8 `[patches, 3, patch_size, patch_size]`.
        grid: Frames (1), rows and columns of patches.
        seed: The sampling seed of its caption.
    """

    token_ids: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int, int]
    seed: int

    @property
    def nbytes(self) -> int:
        """Its size in memory, in bytes."""
        return self.patches.nbytes + self.token_ids.nbytes
