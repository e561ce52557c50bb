"""Delta tables of embeddings: made, checked and filled with what they lack."""

from spark_vision.tables.progress import Progress
from spark_vision.tables.run import WriteResult
from spark_vision.tables.write import write_vision_columns

__all__ = ["Progress", "WriteResult", "write_vision_columns"]
