"""The operators: frozen dataclasses that describe what to compute, validated once on the driver.

Names and defaults follow the operators that users migrate from. An operator is picklable and
hashable. It holds no model and looks for no device: executors do that.
"""

from spark_vision.operators.base import ImageLimits, ImageOperator, Operator, reads_images
from spark_vision.operators.captioning import (
    MAX_ASPECT_RATIO,
    MAX_PROMPT_CHARACTERS,
    QwenVLImageUnderstanding,
)
from spark_vision.operators.embedding import (
    ClipImageEmbedding,
    ClipOperator,
    ClipTextEmbedding,
    EmbeddingOperator,
    ImageEmbeddingOperator,
    ImageVectorOperator,
    ImageViTEmbedding,
)
from spark_vision.operators.tagging import ClipImageTags, ClipVectorTags, TagOperator

__all__ = [
    "MAX_ASPECT_RATIO",
    "MAX_PROMPT_CHARACTERS",
    "OPERATORS",
    "ClipImageEmbedding",
    "ClipImageTags",
    "ClipOperator",
    "ClipTextEmbedding",
    "ClipVectorTags",
    "EmbeddingOperator",
    "ImageEmbeddingOperator",
    "ImageLimits",
    "ImageOperator",
    "ImageVectorOperator",
    "ImageViTEmbedding",
    "Operator",
    "QwenVLImageUnderstanding",
    "TagOperator",
    "reads_images",
]

OPERATORS: dict[str, type[Operator]] = {
    operator.__name__: operator
    for operator in (
        ImageViTEmbedding,
        ClipImageEmbedding,
        ClipTextEmbedding,
        ClipImageTags,
        ClipVectorTags,
        QwenVLImageUnderstanding,
    )
}
