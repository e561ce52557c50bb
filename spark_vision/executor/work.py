"""What an operator does with the rows of a task: found by the name that its class gives."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

import pyarrow as pa
import torch

from spark_vision.executor.placement import Placement
from spark_vision.operators import Operator


class ImageWork(Protocol):
    """What one operator does with the images of a task."""

    @property
    def portion_row_count(self) -> int:
        """Rows that one thread shall prepare at a time."""
        ...

    @property
    def placement(self) -> Callable[[], Placement]:
        """Asks the process that holds the model what it says of itself."""
        ...

    def prepare(self, image: torch.Tensor, prompt: str | None) -> Any:
        """Bring one decoded image, and its prompt if there is one, to what the model takes."""
        ...

    def compute(self, portions: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """Run the model over prepared rows; outcomes come in the rows' order."""
        ...

    def build(self, outcomes: Sequence[Any], with_status: bool) -> pa.Array:
        """Make the Arrow array of some outcomes."""
        ...


def load_work(operator: Operator) -> Callable[..., Any]:
    """Find what computes an operator; its class says where that is, see `Operator.work`."""
    module, _, name = operator.work.partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]
