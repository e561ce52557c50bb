"""Embeds what is searched for, and answers questions, in this process and without Spark.

The functions are those that executors run. They are given a task that is not Spark's.
"""

import io
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from spark_vision.errors import RowFailure, Status, TableError
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.embedding import embed_texts
from spark_vision.executor.model_access import open_checkpoint
from spark_vision.executor.tagging import tag_vectors
from spark_vision.executor.task import Task
from spark_vision.images.byte_rows import tensor_view
from spark_vision.images.decoding import decode
from spark_vision.operators import (
    ClipVectorTags,
    EmbeddingOperator,
    ImageOperator,
    Operator,
    QwenVLImageUnderstanding,
    reads_images,
)
from spark_vision.search.column_model import ColumnModel

Vector = npt.NDArray[np.float32]
_Chosen = TypeVar("_Chosen", bound=Operator)


class QueryModel:
    """The model that filled a column, loaded into this process, and one that answers questions.

    Its methods may be called from any thread; a model computes one call at a time.

    Args:
        column: What the table, or the index, records of the column's model.
        reading: Options of an `ImageOperator`, such as `allow_paths`, `limits` and `device`.
        caption_name: A Qwen-VL checkpoint that answers questions; None means that none does.

    Raises:
        SparkVisionError: A checkpoint is missing, or is not the one that filled the column.
    """

    def __init__(
        self, column: ColumnModel, reading: Mapping[str, Any], caption_name: str | None = None
    ) -> None:
        core_count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._task = Task(gpu_addresses=(), cpus=core_count, is_local=True)
        self._embedding, self._answering = threading.Lock(), threading.Lock()
        recorded = column.operator_for("image", None)
        if not reads_images(recorded):
            raise AssertionError("an operator for images reads images")
        here = self._in_this_process(replace(recorded, **reading))
        # Given back to the column, the operator's weights are compared with those that filled it.
        column.operator_for("image", here)
        self.reader: ImageOperator = here
        self._text = _text_side(column, here)
        self._answers: QwenVLImageUnderstanding | None = None
        if caption_name is not None:
            answers = QwenVLImageUnderstanding(model_name=caption_name, **reading)
            self._answers = self._in_this_process(answers)
        # Loads the model now, and not while the first user waits.
        self.embed_picture(_gray_png())

    @property
    def takes_text(self) -> bool:
        """Whether the column can be searched by texts."""
        return self._text is not None

    @property
    def takes_questions(self) -> bool:
        """Whether `answer` can be called."""
        return self._answers is not None

    def embed_text(self, text: str) -> Vector:
        """Embed a text; float32 `[dimension]` of length 1.

        Raises:
            RowFailure: It has no vector.
        """
        if self._text is None:
            raise RowFailure(Status.MODEL_ERROR, "the model of this table embeds pictures only")
        with self._embedding:
            rows = embed_texts([pa.array([text])], self._text, self._task, with_status=True)
            return unit(_value(next(rows)))

    def embed_picture(self, data: bytes) -> Vector:
        """Embed an image file; float32 `[dimension]` of length 1.

        Raises:
            RowFailure: It cannot be decoded, or is above the limits.
        """
        # A file that crashes a decoder ends that decoder's process, and not this one.
        decode(tensor_view(data), self.reader.limits, isolate=True)
        with self._embedding:
            return unit(self._compute(self.reader, data))

    def rate_tags(self, vector: Vector, tags: Sequence[str]) -> list[tuple[str, float]]:
        """Return tags with their scores for a picture's vector, as `tag_vectors` does, best first.

        Raises:
            RowFailure: The model does not compare pictures with texts.
            InvalidOptionError: There is no tag, one is there twice, or one is too long.
        """
        if self._text is None:
            raise RowFailure(Status.MODEL_ERROR, "the model of this table embeds pictures only")
        operator = self.reader.convert(ClipVectorTags, tags=tuple(tags), top_k=max(len(tags), 1))
        with self._embedding:
            vectors = pa.array([vector.tolist()], pa.list_(pa.float32()))
            rows = tag_vectors([vectors], operator, self._task, with_status=True)
            return [(each["tag"], each["score"]) for each in _value(next(rows))]

    def answer(self, data: bytes, question: str) -> str:
        """Answer a question about an image file.

        Raises:
            RowFailure: The file cannot be decoded, or the question is too long.
        """
        if self._answers is None:
            raise RowFailure(Status.MODEL_ERROR, "no model answers questions; see --caption-name")
        decode(tensor_view(data), self.reader.limits, isolate=True)
        with self._answering:
            return str(self._compute(self._answers, data, question))

    def _compute(self, operator: ImageOperator, data: bytes, prompt: str | None = None) -> Any:
        images = pa.array([data], pa.binary())
        batch = images if prompt is None else (images, pa.array([prompt]))
        ((array,),) = compute_columns([batch], [operator], self._task, with_status=True)
        return _value(array)

    def _in_this_process(self, operator: _Chosen) -> _Chosen:
        """Resolve the checkpoint once, so that no query asks the hub again."""
        checkpoint, _ = open_checkpoint(operator, self._task)
        return replace(
            operator,
            model_name=str(checkpoint.folder.absolute()),
            model_path=None,
            revision=None,
            model_sharing="worker",
            on_error="null",
        )


def _gray_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def _text_side(column: ColumnModel, operator: Operator) -> EmbeddingOperator | None:
    try:
        text = column.operator_for("text", operator)
    except TableError:
        return None
    return text if isinstance(text, EmbeddingOperator) else None


def _value(array: pa.Array) -> Any:
    (row,) = array.to_pylist()
    value, status, error = list(row.values())[:3]
    if status != Status.OK:
        raise RowFailure(Status(status), error or "")
    return value


def unit(numbers: npt.ArrayLike) -> Vector:
    """Return a vector with length 1.

    Raises:
        RowFailure: It has no direction.
    """
    vector = np.asarray(numbers, np.float64)
    norm = float(np.linalg.norm(vector))
    if not 0 < norm < np.inf:
        raise RowFailure(Status.NONFINITE, "the query's vector has no direction")
    result: Vector = (vector / norm).astype(np.float32)
    return result
