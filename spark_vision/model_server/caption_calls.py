"""Generates the captions of several calls in one loop, which further calls enter as rows end.

A call is answered when its last row has ended. An error of the model fails only the calls of the
rows at fault.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from spark_vision.model_server.call_queue import Call
from spark_vision.models.caption_loop import CaptionLoop, EndedRow, join_rows
from spark_vision.models.protocols import CaptionBatch

TakeMore = Callable[[int], Sequence[Call]]


class CaptionCalls:
    """The calls whose rows are in one loop.

    Args:
        loop: An empty loop for the settings of the calls.
        take_more: Returns further calls with the same settings, of at most so many rows together.
        row_limit: Maximum number of rows that have not ended, if there are several calls.
    """

    def __init__(self, loop: CaptionLoop, take_more: TakeMore, row_limit: int) -> None:
        self._loop = loop
        self._take_more = take_more
        self._row_limit = row_limit
        self._numbers: dict[Call, list[int]] = {}
        self._call_of: dict[int, Call] = {}
        self._ended: dict[int, EndedRow] = {}

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Any]]:
        """Yield each call with its GeneratedTokens, or with the error that it caused."""
        for call in calls:
            yield from self._add(call)
        while self._numbers:
            for row in self._loop.step():
                yield from self._end(row)
            for call in self._take_more(self._row_limit - len(self._loop)):
                yield from self._add(call)
            for call in list(self._numbers):
                # Each step renews the time limit of all calls.
                call.client.begin()
                if call.client.has_left:
                    self._forget(call)
                    yield call, ConnectionError("the client has left")

    def _add(self, call: Call) -> Iterator[tuple[Call, Exception]]:
        try:
            # The client's memory is its next call's once this one is answered, even if rows are
            # left in the loop.
            tensors = {name: tensor.clone() for name, tensor in call.tensors.items()}
            numbers = self._loop.add(CaptionBatch(**tensors))
        except Exception as error:
            yield call, error
        else:
            self._numbers[call] = numbers
            self._call_of.update(dict.fromkeys(numbers, call))

    def _end(self, row: EndedRow) -> Iterator[tuple[Call, Any]]:
        call = self._call_of.pop(row.number, None)
        if call is None:  # The call has failed, and its other rows are of no use.
            return
        numbers = self._numbers[call]
        self._ended[row.number] = row
        if row.error is not None:
            self._forget(call)
            yield call, row.error
        elif all(number in self._ended for number in numbers):
            yield call, join_rows([self._ended[number] for number in numbers])
            self._forget(call)

    def _forget(self, call: Call) -> None:
        """Forget a call; of its rows, those that have entered end in the loop."""
        numbers = self._numbers.pop(call)
        self._loop.drop(numbers)
        for number in numbers:
            self._ended.pop(number, None)
            # It refers to the client's connection and memory.
            self._call_of.pop(number, None)
