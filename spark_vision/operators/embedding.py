"""The operators that compute vectors of images and of texts."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_vision.operators.base import ImageOperator, Operator
from spark_vision.operators.options import FrozenMapping, option

POOLINGS = ("cls", "mean", "pooler", "tokens")

OPENAI_CLIP_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
OPENAI_CLIP_RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")


@dataclass(frozen=True, kw_only=True)
class EmbeddingOperator(Operator, ABC):
    """Base class of operators that compute vectors."""

    normalize: bool = option(True, "Scale every vector to length 1 (L2).")
    torch_compile: bool = option(
        False,
        "Compile the model by torch.compile. It is meant for GPUs, where it has not been measured; "
        "on a CPU it gained nothing. The first batch of each model process then takes a minute or "
        "more, and executors need a C++ compiler.",
    )

    @property
    @abstractmethod
    def effective_pooling(self) -> str:
        """The pooling of the model's tokens, resolved from the options."""

    @property
    def value_fields(self) -> Mapping[str, str]:
        """One vector, or one vector per token."""
        is_tokens = self.effective_pooling == "tokens"
        return {"embedding": "array<array<float>>" if is_tokens else "array<float>"}

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Pooling and normalisation."""
        return {
            **super().identity_options,
            "pooling": self.effective_pooling,
            "normalize": str(self.normalize).lower(),
        }


@dataclass(frozen=True, kw_only=True)
class ImageVectorOperator(ImageOperator, ABC):
    """Base class of operators whose model computes a vector of each image."""

    image_processor_kwargs: Mapping[str, Any] | None = option(
        None, "Settings that override those of the checkpoint's image processor."
    )
    fast_decode: bool = option(
        False,
        "Scale a large JPEG down while decoding it, to at least three times the height and "
        "width that the model resizes it to. This is faster, and changes vectors slightly.",
    )

    @property
    @abstractmethod
    def effective_pooling(self) -> str:
        """The pooling of the model's tokens, resolved from the options."""

    @property
    def processor_overrides(self) -> Mapping[str, Any]:
        """Settings that override those of the checkpoint's image processor."""
        given = self.image_processor_kwargs
        return given.thaw() if isinstance(given, FrozenMapping) else {}

    @property
    def identity_options(self) -> Mapping[str, str]:
        """What determines the pixels that the model gets from an image."""
        return {
            **super().identity_options,
            "image_processor_kwargs": json.dumps(self.processor_overrides, sort_keys=True),
            "fast_decode": str(self.fast_decode).lower(),
        }


@dataclass(frozen=True, kw_only=True)
class ImageEmbeddingOperator(ImageVectorOperator, EmbeddingOperator, ABC):
    """Base class of operators that compute vectors of images."""

    function = "embed_image"
    work = "spark_vision.executor.embedding:ImageEmbeddings"


@dataclass(frozen=True, kw_only=True)
class ImageViTEmbedding(ImageEmbeddingOperator):
    """Image vectors from a vision transformer: ViT, DINOv2 (with registers or without) or DINOv3.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base", dtype="bfloat16")
        >>> photos.select("path", embed_image("content", dino).alias("embedding")).show()
    """

    families = ("vit",)

    use_cls_token_embedding: bool = option(
        True, "True: the CLS token; False: the mean of the patch tokens."
    )
    pooling: str | None = option(
        None,
        "The CLS token, the mean of the patch tokens, the checkpoint's trained pooler, or all "
        "tokens; none: as use_cls_token_embedding.",
        allowed=POOLINGS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling == "tokens" and self.on_error == "zero":
            given = "'zero' with pooling='tokens', whose values have no fixed length"
            raise self._refusal("on_error", given, "null, raise")

    @property
    def effective_pooling(self) -> str:
        """The pooling, resolved from `pooling` and `use_cls_token_embedding`."""
        return self.pooling or ("cls" if self.use_cls_token_embedding else "mean")


@dataclass(frozen=True, kw_only=True)
class ClipOperator(Operator, ABC):
    """Base class of operators whose model has one space for images and texts."""

    families = ("clip",)

    model_name: str = option(
        "openai/clip-vit-base-patch32",
        "CLIP, Chinese-CLIP, SigLIP or SigLIP 2 checkpoint: a folder, a name on the hub, or "
        "OpenAI's name.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_name in OPENAI_CLIP_RESNETS:
            given = f"{self.model_name!r}, a ResNet, which transformers does not support"
            names = ", ".join(OPENAI_CLIP_NAMES)
            allowed = f"{names}, a folder, or a checkpoint's name on the hub"
            raise self._refusal("model_name", given, allowed)

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint's name, translated from OpenAI's spelling."""
        return OPENAI_CLIP_NAMES.get(self.model_name, self.model_name)

    @property
    def effective_pooling(self) -> str:
        """The projection into the space that images and texts share."""
        return "projection"


@dataclass(frozen=True, kw_only=True)
class ClipImageEmbedding(ClipOperator, ImageEmbeddingOperator):
    """Image vectors in the space that a CLIP-like checkpoint shares with texts.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> clip = ClipImageEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> photos.select("path", embed_image("content", clip).alias("embedding")).show()
    """


@dataclass(frozen=True, kw_only=True)
class ClipTextEmbedding(ClipOperator, EmbeddingOperator):
    """Text vectors in the space that a CLIP-like checkpoint shares with images.

    Example:
        >>> queries = spark.createDataFrame([("a red circle",), ("two stars",)], "query string")
        >>> clip = ClipTextEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> queries.select("query", embed_text("query", clip).alias("embedding")).show()
    """

    reads = ("text",)
    function = "embed_text"
    work = "spark_vision.executor.embedding:embed_texts"
