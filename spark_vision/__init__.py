"""Image embeddings and captions as Spark columns.

Importing the package costs neither torch nor transformers nor pyspark: what needs them is imported
when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from spark_vision._version import __version__
from spark_vision.errors import (
    CheckpointNotFoundError,
    CommitConflictError,
    DeviceError,
    FailureRateError,
    IndexConnectionError,
    InputTypeError,
    InvalidOptionError,
    MissingExtraError,
    ModelServerError,
    RowFailure,
    SessionError,
    SparkVisionError,
    Status,
    TableError,
    UnsupportedCheckpointError,
    VectorIndexError,
)
from spark_vision.operators import (
    ClipImageEmbedding,
    ClipImageTags,
    ClipTextEmbedding,
    ClipVectorTags,
    ImageLimits,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
)

if TYPE_CHECKING:
    from spark_vision.functions import (
        caption_image,
        embed_image,
        embed_text,
        model_placement,
        tag_image,
        tag_vectors,
    )
    from spark_vision.notebook import show_images
    from spark_vision.search.duplicates import find_duplicates, group_duplicates
    from spark_vision.search.exact import search_images
    from spark_vision.search.index_rows import IndexProblem, IndexReport, index_ready
    from spark_vision.search.milvus import MilvusIndex
    from spark_vision.search.pinecone_index import PineconeIndex
    from spark_vision.search.sync import SyncResult, sync_index
    from spark_vision.session import configure
    from spark_vision.spark.driver_checks import ModelIdentity, describe_model
    from spark_vision.sql import register_functions
    from spark_vision.tables.forecast import WriteForecast, plan_vision_columns
    from spark_vision.tables.progress import Progress
    from spark_vision.tables.progress_bar import ProgressBar
    from spark_vision.tables.stream import stream_vision_columns, write_vision_batch
    from spark_vision.tables.write import write_vision_columns
    from spark_vision.tables.write_result import TaskWork, WriteResult
    from spark_vision.unity_catalog import unity_catalog_ddl

__all__ = [
    "CheckpointNotFoundError",
    "ClipImageEmbedding",
    "ClipImageTags",
    "ClipTextEmbedding",
    "ClipVectorTags",
    "CommitConflictError",
    "DeviceError",
    "FailureRateError",
    "ImageLimits",
    "ImageViTEmbedding",
    "IndexConnectionError",
    "IndexProblem",
    "IndexReport",
    "InputTypeError",
    "InvalidOptionError",
    "MilvusIndex",
    "MissingExtraError",
    "ModelIdentity",
    "ModelServerError",
    "PineconeIndex",
    "Progress",
    "ProgressBar",
    "QwenVLImageUnderstanding",
    "RowFailure",
    "SessionError",
    "SparkVisionError",
    "Status",
    "SyncResult",
    "TableError",
    "TaskWork",
    "UnsupportedCheckpointError",
    "VectorIndexError",
    "WriteForecast",
    "WriteResult",
    "__version__",
    "caption_image",
    "configure",
    "describe_model",
    "embed_image",
    "embed_text",
    "find_duplicates",
    "group_duplicates",
    "index_ready",
    "model_placement",
    "plan_vision_columns",
    "register_functions",
    "search_images",
    "show_images",
    "stream_vision_columns",
    "sync_index",
    "tag_image",
    "tag_vectors",
    "unity_catalog_ddl",
    "write_vision_batch",
    "write_vision_columns",
]

_LAZY_NAMES = {
    "IndexProblem": "spark_vision.search.index_rows",
    "IndexReport": "spark_vision.search.index_rows",
    "MilvusIndex": "spark_vision.search.milvus",
    "ModelIdentity": "spark_vision.spark.driver_checks",
    "PineconeIndex": "spark_vision.search.pinecone_index",
    "Progress": "spark_vision.tables.progress",
    "ProgressBar": "spark_vision.tables.progress_bar",
    "SyncResult": "spark_vision.search.sync",
    "TaskWork": "spark_vision.tables.write_result",
    "WriteForecast": "spark_vision.tables.forecast",
    "WriteResult": "spark_vision.tables.write_result",
    "caption_image": "spark_vision.functions",
    "configure": "spark_vision.session",
    "describe_model": "spark_vision.spark.driver_checks",
    "embed_image": "spark_vision.functions",
    "embed_text": "spark_vision.functions",
    "find_duplicates": "spark_vision.search.duplicates",
    "group_duplicates": "spark_vision.search.duplicates",
    "index_ready": "spark_vision.search.index_rows",
    "model_placement": "spark_vision.functions",
    "plan_vision_columns": "spark_vision.tables.forecast",
    "register_functions": "spark_vision.sql",
    "search_images": "spark_vision.search.exact",
    "show_images": "spark_vision.notebook",
    "stream_vision_columns": "spark_vision.tables.stream",
    "sync_index": "spark_vision.search.sync",
    "tag_image": "spark_vision.functions",
    "tag_vectors": "spark_vision.functions",
    "unity_catalog_ddl": "spark_vision.unity_catalog",
    "write_vision_batch": "spark_vision.tables.stream",
    "write_vision_columns": "spark_vision.tables.write",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY_NAMES[name]), name)
