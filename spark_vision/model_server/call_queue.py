"""The calls that wait in a model server, and which of them are computed at a time.

Calls are computed in order of arrival. Calls that fit together are joined, so that the device
computes full batches even if those of the clients are small. A call that was in flight when an
earlier server ended is computed alone, with no other call in progress: if the server ends again,
that call is the cause.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from spark_vision.model_server.server import ClientConnection


# The methods whose result has one row for each row of their tensors.
_JOINED_METHODS = ("embed_images", "embed_texts")


class Call:
    """A call of a client.

    Args:
        client: Receives the answer.
        header: The method and its arguments.
        tensors: Its tensors, in the client's shared memory.

    Attributes:
        is_alone: Whether no other call may be in progress meanwhile.
        row_count: Number of rows of its tensors; 0 if it cannot be joined.
        kind: Calls of the same kind can be joined; None: this one cannot.
    """

    def __init__(
        self,
        client: "ClientConnection",
        header: Mapping[str, Any],
        tensors: "Mapping[str, torch.Tensor]",
    ) -> None:
        self.client = client
        self.header = header
        self.tensors = tensors
        self.is_alone = header.get("alone") is True
        row_counts = {len(each) if each.ndim else 0 for each in tensors.values()}
        can_join = len(row_counts) == 1 and header.get("method") in _JOINED_METHODS
        self.row_count = row_counts.pop() if can_join else 0
        self.kind: Hashable = None
        if self.row_count and not self.is_alone:
            rows = [(name, each.dtype, each.shape[1:]) for name, each in tensors.items()]
            arguments = json.dumps(header.get("arguments"), sort_keys=True)
            self.kind = (header["method"], arguments, *rows)


class CallQueue:
    """Calls in order of arrival, shared by the threads that compute them.

    Args:
        row_limit: Returns the maximum number of rows of joined calls of a kind.
    """

    def __init__(self, row_limit: Callable[[Hashable], int]) -> None:
        self._row_limit = row_limit
        self._changed = threading.Condition()
        self._waiting: deque[Call] = deque()
        self._running_count = 0
        self._is_alone = False

    def put(self, call: Call) -> None:
        """Add a call."""
        with self._changed:
            self._waiting.append(call)
            self._changed.notify_all()

    def take(self) -> list[Call]:
        """Wait for the oldest call; return it with those that are joined with it.

        The caller must call `finish` once they are answered.
        """
        with self._changed:
            self._changed.wait_for(self._may_take)
            first = self._waiting.popleft()
            self._running_count += 1
            self._is_alone = first.is_alone
            return [first] if first.kind is None else self._join(first)

    def finish(self) -> None:
        """Report that the calls of one `take` are answered."""
        with self._changed:
            self._running_count -= 1
            self._is_alone = False
            self._changed.notify_all()

    def _may_take(self) -> bool:
        # The calls of a cancelled job would delay the next query.
        while self._waiting and self._waiting[0].client.has_left:
            self._waiting.popleft().client.answer({})
        if not self._waiting or self._is_alone:
            return False
        return not (self._waiting[0].is_alone and self._running_count)

    def _join(self, first: Call) -> list[Call]:
        joined, others = [first], []
        left = self._row_limit(first.kind) - first.row_count
        while self._waiting:
            call = self._waiting.popleft()
            fits = call.kind == first.kind and call.row_count <= left
            if fits and not call.client.has_left:
                joined.append(call)
                left -= call.row_count
            else:
                others.append(call)
        self._waiting.extend(others)
        return joined
