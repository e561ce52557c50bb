"""Delta tables of embeddings: made, filled with what they lack, followed by streams and indexes."""

from spark_vision.tables.forecast import WriteForecast, plan_vision_columns
from spark_vision.tables.index import IndexProblem, IndexReport, index_ready
from spark_vision.tables.progress import Progress
from spark_vision.tables.stream import stream_vision_columns, write_vision_batch
from spark_vision.tables.write import WriteResult, write_vision_columns

__all__ = [
    "IndexProblem",
    "IndexReport",
    "Progress",
    "WriteForecast",
    "WriteResult",
    "index_ready",
    "plan_vision_columns",
    "stream_vision_columns",
    "write_vision_batch",
    "write_vision_columns",
]
