"""What a loaded model can do, in the terms of the code that feeds it.

These protocols are the one place where a model is reached, whether it lives in the Python worker or
in a process of its own: uint8 pixels or token ids go in, float32 vectors or token ids come out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class GenerationSettings:
    """How a caption is generated; every value is plain JSON.

    Attributes:
        max_new_tokens: Most tokens of a caption, its end included.
        do_sample: Draw each token; otherwise take the most probable one.
        temperature: Divides the logits before a draw.
        top_k: Draw among so many of the most probable tokens; 0 means all.
        top_p: Draw among the most probable tokens that together have this probability.
        repetition_penalty: Divides the logits of tokens that occurred; None: the checkpoint's.
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float | None = None


class CaptionBatch(NamedTuple):
    """Prompts with an image each, as a model of images and text takes them; all on the CPU.

    Attributes:
        token_ids: int64 `[images, tokens]`, padded on the left, the image's place taken by one
            image token for each square of merged patches.
        attention_mask: int64 `[images, tokens]`: 0 where a row is padded, else 1.
        patches: uint8 `[patches of all images, 3, patch_size, patch_size]` RGB, an image's after
            another's, in the order in which the model merges them.
        grids: int64 `[images, 3]`: frames (1), rows and columns of patches.
        seeds: int64 `[images]`: what a sampled caption is drawn by.
    """

    token_ids: torch.Tensor
    attention_mask: torch.Tensor
    patches: torch.Tensor
    grids: torch.Tensor
    seeds: torch.Tensor


class GeneratedTokens(NamedTuple):
    """What was generated for each row of a batch; all on the CPU.

    Attributes:
        token_ids: int64 `[images, new_tokens]`, the prompt left out; padded after the caption.
        lengths: int64 `[images]`: tokens of each caption, the one that ends it left out.
        truncated: bool `[images]`: the caption was cut at `max_new_tokens`.
        finite: bool `[images]`: False where the model gave NaN or infinity on the way.
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor
    truncated: torch.Tensor
    finite: torch.Tensor


@runtime_checkable
class ImageCaptioner(Protocol):
    """A model that writes about images."""

    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Write a text about each image of a batch.

        A row's result does not depend on the other rows, apart from the last bits of the
        arithmetic.

        Args:
            batch: As the checkpoint's `CaptionPreprocessor` makes it.
            scaling: Applied once per batch on the model's device.
            settings: Stop and padding tokens are the checkpoint's own.
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


@dataclass(frozen=True)
class CaptionInput:
    """One image with its prompt, ready for a batch.

    Attributes:
        token_ids: int64 `[tokens]`.
        patches: uint8 `[patches, 3, patch_size, patch_size]`.
        grid: Frames (1), rows and columns of patches.
        seed: What a sampled caption is drawn by.
    """

    token_ids: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int, int]
    seed: int

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.patches.nbytes + self.token_ids.nbytes


class CaptionPreprocessor(Protocol):
    """The weight-free half of a checkpoint that captions; threads may share it."""

    @property
    def scaling(self) -> PixelScaling:
        """The rescale and normalise steps, left to the model's device."""
        ...

    def prepare(self, image: torch.Tensor, prompt: str) -> CaptionInput:
        """Resize one image, cut it into patches, and put it into its prompt.

        Args:
            image: uint8 `[3, height, width]` RGB, planar or interleaved in memory.
            prompt: What is asked of it.

        Raises:
            RowFailure: `bad_dimensions` or `bad_prompt`: the model does not take it.
        """
        ...

    def collate(self, inputs: Sequence[CaptionInput]) -> CaptionBatch:
        """Pad the inputs to one length, and join their patches."""
        ...

    def decode(self, generated: GeneratedTokens) -> list[str]:
        """Turn each row's tokens into text, without control tokens."""
        ...
