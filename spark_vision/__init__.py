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
    name: f"spark_vision.{module}"
    for module, names in {
        "functions": "caption_image embed_image embed_text model_placement tag_image tag_vectors",
        "notebook": "show_images",
        "search.duplicates": "find_duplicates group_duplicates",
        "search.exact": "search_images",
        "search.index_rows": "IndexProblem IndexReport index_ready",
        "search.milvus": "MilvusIndex",
        "search.pinecone_index": "PineconeIndex",
        "search.sync": "SyncResult sync_index",
        "session": "configure",
        "spark.driver_checks": "ModelIdentity describe_model",
        "sql": "register_functions",
        "tables.forecast": "WriteForecast plan_vision_columns",
        "tables.progress": "Progress",
        "tables.progress_bar": "ProgressBar",
        "tables.stream": "stream_vision_columns write_vision_batch",
        "tables.write": "write_vision_columns",
        "tables.write_result": "TaskWork WriteResult",
        "unity_catalog": "unity_catalog_ddl",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY_NAMES[name]), name)
