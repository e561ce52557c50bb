"""Which of the calls that wait in a model server are computed at a time, and which are joined.

Captions are generated in a loop, which further calls enter while it runs, unless an older call of
another kind waits. A call that may be fatal is computed while no other is in progress.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

    from spark_vision.model_server.server import ClientConnection


class Call:
    """A call of a client.

    Args:
        client: Receives the answer.
        header: The method and its arguments.
        tensors: Its tensors, in the client's shared memory.

    Attributes:
        is_alone: Whether no other call may be in progress meanwhile.
        is_loop: Whether its rows enter a loop, which further calls may enter later.
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
        method = header.get("method")
        self.is_loop = method == "generate"
        is_joined = method in ("embed_images", "embed_texts")
        # A result has one row for each row of these.
        counted = [
            each
            for name, each in tensors.items()
            if is_joined or (self.is_loop and name == "token_ids")
        ]
        row_counts = {len(each) if each.ndim else 0 for each in counted}
        self.row_count = row_counts.pop() if len(row_counts) == 1 else 0
        self.kind: Hashable = None
        if self.row_count and not self.is_alone:
            arguments = json.dumps(header.get("arguments"), sort_keys=True)
            rows = [(name, each.dtype, each.shape[1:]) for name, each in tensors.items()]
            # The rows of a loop may have various sizes.
            self.kind = (method, arguments, *([] if self.is_loop else rows))


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
        # The kinds of the loops that run: their calls wait for their loop.
        self._loops: set[Hashable] = set()

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
            first = cast(Call, self._changed.wait_for(self._find))
            self._waiting.remove(first)
            self._running_count += 1
            self._is_alone = first.is_alone
            row_limit = self._row_limit(first.kind)
            if first.is_loop and first.kind is not None and row_limit:
                self._loops.add(first.kind)
            return [first, *self._take(first.kind, row_limit - first.row_count, first.is_loop)]

    def take_more(self, kind: Hashable, row_count: int) -> list[Call]:
        """Return calls that may enter a running loop now, without waiting for any.

        Args:
            kind: Of the loop; None: no calls may.
            row_count: Maximum number of rows of all of them.
        """
        with self._changed:
            return self._take(kind, row_count, is_loop=True)

    def finish(self, kind: Hashable) -> None:
        """Report that the calls of one `take` are answered.

        Args:
            kind: The kind of the first one.
        """
        with self._changed:
            self._running_count -= 1
            self._is_alone = False
            self._loops.discard(kind)
            self._changed.notify_all()

    def _find(self) -> Call | None:
        """Return the oldest call that may be computed now."""
        self._drop_left()
        for call in self._waiting:
            if self._is_alone or (call.is_alone and self._running_count):
                return None
            if call.kind is None or call.kind not in self._loops:
                return call
        return None

    def _take(self, kind: Hashable, row_count: int, is_loop: bool) -> list[Call]:
        self._drop_left()
        taken: list[Call] = []
        for call in list(self._waiting):
            if kind is not None and call.kind == kind and call.row_count <= row_count:
                self._waiting.remove(call)
                taken.append(call)
                row_count -= call.row_count
            elif is_loop:  # which must not delay an older call of another kind, or of more rows
                break
        return taken

    def _drop_left(self) -> None:
        """Remove calls whose clients have left: those of a cancelled job would delay the next."""
        for call in list(self._waiting):
            if call.client.has_left:
                self._waiting.remove(call)
                call.client.answer({})
