"""Makes thumbnails of the images of a task."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from spark_vision.errors import RowFailure
from spark_vision.executor.arrays import add_statuses
from spark_vision.executor.task import Task
from spark_vision.images.thumbnails import encode_thumbnail
from spark_vision.operators.thumbnail import ImageThumbnail

_Jpeg = npt.NDArray[np.uint8]


class Thumbnails:
    """The thumbnails of one task's images: an `ImageWork` without a model."""

    portion_row_count = 1

    def __init__(self, operator: ImageThumbnail, task: Task) -> None:
        self._max_side = operator.max_side

    def prepare(self, image: torch.Tensor, prompt: str | None) -> _Jpeg:
        """Encode the thumbnail of one decoded image; uint8 `[bytes]`."""
        return np.frombuffer(encode_thumbnail(image, self._max_side), np.uint8)

    def compute(
        self, portions: Iterable[list[_Jpeg | RowFailure]]
    ) -> Iterator[list[_Jpeg | RowFailure]]:
        """Nothing is left to compute."""
        return iter(portions)

    def build(self, outcomes: Sequence[_Jpeg | RowFailure], with_status: bool) -> pa.Array:
        """Build Arrow binaries, or structs of thumbnail, status and error."""
        files = [None if isinstance(row, RowFailure) else row.tobytes() for row in outcomes]
        values = pa.array(files, pa.binary())
        return add_statuses("thumbnail", values, outcomes) if with_status else values
