"""Image embeddings and captions as Spark columns.

Importing the package costs neither torch nor transformers nor pyspark: what needs them is imported
when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from spark_vision.errors import SparkVisionError
from spark_vision.operators import (
    ClipImageEmbedding,
    ClipTextEmbedding,
    ImageLimits,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
)

if TYPE_CHECKING:
    from spark_vision.functions import caption_image, embed_image, embed_text, model_placement
    from spark_vision.session import configure
    from spark_vision.sql import register_functions
    from spark_vision.tables import (
        index_ready,
        plan_vision_columns,
        stream_vision_columns,
        write_vision_batch,
        write_vision_columns,
    )

__version__ = "0.1.0"
__all__ = [
    "ClipImageEmbedding",
    "ClipTextEmbedding",
    "ImageLimits",
    "ImageViTEmbedding",
    "QwenVLImageUnderstanding",
    "SparkVisionError",
    "caption_image",
    "configure",
    "embed_image",
    "embed_text",
    "index_ready",
    "model_placement",
    "plan_vision_columns",
    "register_functions",
    "stream_vision_columns",
    "write_vision_batch",
    "write_vision_columns",
]

_LAZY_NAMES = {
    "caption_image": "spark_vision.functions",
    "configure": "spark_vision.session",
    "embed_image": "spark_vision.functions",
    "embed_text": "spark_vision.functions",
    "index_ready": "spark_vision.tables",
    "model_placement": "spark_vision.functions",
    "plan_vision_columns": "spark_vision.tables",
    "register_functions": "spark_vision.sql",
    "stream_vision_columns": "spark_vision.tables",
    "write_vision_batch": "spark_vision.tables",
    "write_vision_columns": "spark_vision.tables",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY_NAMES[name]), name)
