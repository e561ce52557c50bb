"""The operators: what to compute, as frozen dataclasses that are validated once, on the driver.

Names and defaults follow the operators that users migrate from. An operator is picklable and
hashable, holds no model, and never looks for a device: executors do that.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_vision.errors import InvalidOptionError
from spark_vision.options import normalize_options, option

IMAGE_SOURCE_TYPES = ("image_url", "image_base64", "image_binary")
DTYPES = ("float32", "float16", "bfloat16")
POOLINGS = ("cls", "mean", "pooler", "tokens")

OPENAI_CLIP_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
OPENAI_CLIP_RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may cost before it is refused on its row.

    The pixel cap is the size at which Pillow warns of a decompression bomb.
    """

    max_bytes: int = option(100 * 2**20, "Most encoded bytes of one image.", minimum=1)
    max_pixels: int = option(89_478_485, "Most pixels (width × height) of one image.", minimum=1)
    fetch_seconds: float = option(
        30.0,
        "Time to fetch one image over http, redirects and retries included; "
        "other file systems are asked between pieces of it.",
        exclusive_minimum=0,
    )
    fetch_concurrency: int = option(16, "Images that one task fetches at a time.", minimum=1)

    def __post_init__(self) -> None:
        normalize_options(self)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What every operator has: a checkpoint, a device, and a rule for rows that fail."""

    dtype: str = option("float32", "Precision of the model's computation.", allowed=DTYPES)
    batch_size: int = option(32, "Rows that the model computes at once.", minimum=1)
    model_path: str | None = option(
        "/opt/las/models", "Folder of checkpoints, looked into before the Hugging Face hub."
    )
    model_name: str = option(
        "facebook/dinov2-large", "Checkpoint: a folder, or a name on the Hugging Face hub."
    )
    revision: str | None = option(None, "Branch, tag or commit of a checkpoint on the hub.")
    device: str = option("auto", "Where the model computes.", allowed=("auto", "cuda", "cpu"))
    rank: int | None = option(
        0, "Which of the GPUs that Spark gave the task; it has no meaning on a CPU.", minimum=0
    )
    model_sharing: str = option(
        "executor",
        "Who holds the model: one process for all tasks of an executor, or each Python worker.",
        allowed=("executor", "worker"),
    )
    on_error: str = option(
        "null",
        "A failed row's value: null, a zero vector, or raise, which fails the job.",
        allowed=("null", "zero", "raise"),
    )

    def __post_init__(self) -> None:
        normalize_options(self)

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint's name as a folder or the hub knows it."""
        return self.model_name


@dataclass(frozen=True, kw_only=True)
class ImageOperator(Operator):
    """What every operator over images has: a source, its limits, the processor's settings."""

    image_src_type: str = option(
        "image_url",
        "How to read a string column; binary columns and image structs are always bytes.",
        allowed=IMAGE_SOURCE_TYPES,
    )
    image_processor_kwargs: Mapping[str, Any] | None = option(
        None, "Settings that override those of the checkpoint's image processor."
    )
    limits: ImageLimits = option(
        ImageLimits(), "Bytes, pixels and seconds that one image may cost."
    )
    storage_options: Mapping[str, Any] | None = option(
        None, "Options for fsspec, such as credentials; never shown or logged.", secret=True
    )


@dataclass(frozen=True, kw_only=True)
class EmbeddingOperator(Operator, ABC):
    """What every operator that gives vectors has."""

    normalize: bool = option(True, "Scale every vector to length 1 (L2).")

    @property
    @abstractmethod
    def effective_pooling(self) -> str:
        """How the model's tokens become a vector: what the options come to."""


@dataclass(frozen=True, kw_only=True)
class ImageViTEmbedding(ImageOperator, EmbeddingOperator):
    """Image vectors by a vision transformer: ViT, DINOv2, DINOv2 with registers."""

    use_cls_token_embedding: bool = option(
        True, "True takes the CLS token, False the mean of the patch tokens."
    )
    pooling: str | None = option(
        None,
        "cls, mean, the checkpoint's trained pooler, or all tokens; "
        "none follows use_cls_token_embedding.",
        allowed=POOLINGS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling == "tokens" and self.on_error == "zero":
            raise InvalidOptionError(
                "ImageViTEmbedding.on_error got 'zero' with pooling='tokens', whose value has no "
                "fixed length; allowed: null, raise"
            )

    @property
    def effective_pooling(self) -> str:
        """The pooling that `pooling` and `use_cls_token_embedding` come to."""
        return self.pooling or ("cls" if self.use_cls_token_embedding else "mean")


@dataclass(frozen=True, kw_only=True)
class _ClipEmbedding(EmbeddingOperator):
    model_name: str = option(
        "openai/clip-vit-base-patch32",
        "CLIP, Chinese-CLIP or SigLIP checkpoint: a folder, a name on the hub, or OpenAI's own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_name in OPENAI_CLIP_RESNETS:
            raise InvalidOptionError(
                f"{type(self).__name__}.model_name got {self.model_name!r}, a ResNet, which "
                f"transformers does not have; allowed: {', '.join(OPENAI_CLIP_NAMES)}, "
                "a folder, or a checkpoint's name on the hub"
            )

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint's name, OpenAI's own spelling translated."""
        return OPENAI_CLIP_NAMES.get(self.model_name, self.model_name)

    @property
    def effective_pooling(self) -> str:
        """CLIP-like models project into the space that images and texts share."""
        return "projection"


@dataclass(frozen=True, kw_only=True)
class ClipImageEmbedding(_ClipEmbedding, ImageOperator):
    """Image vectors in the space that a CLIP-like checkpoint shares with texts."""


@dataclass(frozen=True, kw_only=True)
class ClipTextEmbedding(_ClipEmbedding):
    """Text vectors in the space that a CLIP-like checkpoint shares with images."""


OPERATORS: dict[str, type[Operator]] = {
    operator.__name__: operator
    for operator in (ImageViTEmbedding, ClipImageEmbedding, ClipTextEmbedding)
}
