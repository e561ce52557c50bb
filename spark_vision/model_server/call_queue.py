"""The calls that wait in a model server, and which of them are computed at a time.

Calls are computed in order of arrival. Calls that fit together are joined, so that the device
computes full batches even if those of the clients are small. Captions are generated in a loop,
which further calls enter while it runs, unless an older call of another kind waits. A call that was
in flight when an earlier server ended is computed alone, with no other call in progress: if the
server ends again, that call is the cause.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

    from spark_vision.model_server.server import ClientConnection


# The methods whose result has one row for each row of their tensors.
_JOINED_METHODS = ("embed_images", "embed_texts")
_LOOP_METHOD = "generate"


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
        is_loop: Whether its rows enter a loop, which further calls may enter later.
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
        self.is_loop = header.get("method") == _LOOP_METHOD
        token_ids = tensors.get("token_ids")
        if self.is_loop and token_ids is not None and token_ids.ndim:
            self.row_count = len(token_ids)
        if self.row_count and not self.is_alone:
            arguments = json.dumps(header.get("arguments"), sort_keys=True)
            self.kind = (header["method"], arguments)
            if not self.is_loop:
                rows = [(name, each.dtype, each.shape[1:]) for name, each in tensors.items()]
                self.kind = (*self.kind, *rows)


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
            if first.kind is None:
                return [first]
            row_limit = self._row_limit(first.kind)
            left = row_limit - first.row_count
            if not first.is_loop:
                return [first, *self._join(first.kind, left)]
            if row_limit:
                self._loops.add(first.kind)
            return [first, *self.take_more(first.kind, left)]

    def take_more(self, kind: Hashable, row_count: int) -> list[Call]:
        """Return calls that may enter a running loop now, without waiting for any.

        Args:
            kind: Of the loop.
            row_count: Maximum number of rows of all of them.
        """
        with self._changed:
            taken: list[Call] = []
            # Only from the front: no older call of another kind, or of more rows, is overtaken.
            while (first := self._first()) and first.kind == kind and first.row_count <= row_count:
                self._waiting.popleft()
                taken.append(first)
                row_count -= first.row_count
            return taken

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
        if self._first() is None or self._is_alone:
            return None
        for call in self._waiting:
            if call.is_alone and self._running_count:
                return None
            if call.kind is None or call.kind not in self._loops:
                return call
        return None

    def _first(self) -> Call | None:
        """Return the oldest call; those of clients that have left are removed.

        The calls of a cancelled job would delay the next query.
        """
        for call in list(self._waiting):
            if call.client.has_left:
                self._waiting.remove(call)
                call.client.answer({})
        return self._waiting[0] if self._waiting else None

    def _join(self, kind: Hashable, row_count: int) -> list[Call]:
        joined: list[Call] = []
        for call in list(self._waiting):
            if call.kind == kind and call.row_count <= row_count and not call.client.has_left:
                self._waiting.remove(call)
                joined.append(call)
                row_count -= call.row_count
        return joined
