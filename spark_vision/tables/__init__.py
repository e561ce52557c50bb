"""Delta tables of embeddings: made, filled with what they lack, followed by streams and indexes."""

from spark_vision.tables.index import IndexProblem, IndexReport, index_ready
from spark_vision.tables.progress import Progress
from spark_vision.tables.run import WriteResult
from spark_vision.tables.stream import stream_vision_columns
from spark_vision.tables.write import write_vision_columns

__all__ = [
    "IndexProblem",
    "IndexReport",
    "Progress",
    "WriteResult",
    "index_ready",
    "stream_vision_columns",
    "write_vision_columns",
]
