"""The protocol of an operator's work on images, and its import by the name in `Operator.work`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

import pyarrow as pa
import torch

from spark_vision.operators import Operator


class ImageWork(Protocol):
    """Computes one operator for the images of a task."""

    @property
    def portion_row_count(self) -> int:
        """Number of rows that one thread prepares at a time."""
        ...

    def prepare(self, image: torch.Tensor, prompt: str | None) -> Any:
        """Prepare one decoded image and its optional prompt for the model."""
        ...

    def compute(self, portions: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """Run the model over prepared rows; yields outcomes in the order of the rows."""
        ...

    def build(self, outcomes: Sequence[Any], with_status: bool) -> pa.Array:
        """Build the Arrow array of some outcomes."""
        ...


def load_work(operator: Operator) -> Callable[..., Any]:
    """Import what computes an operator; see `Operator.work`."""
    module, _, name = operator.work.partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]
