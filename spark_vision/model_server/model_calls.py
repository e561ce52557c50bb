"""Answers calls with the model of a server: one by one, joined to a batch, or in a loop.

The loop generates the captions of several calls, which enter while it runs; each is answered when
its last row has ended. An error reaches only the call that caused it.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spark_vision.errors import ModelServerError, UnsupportedCheckpointError
from spark_vision.executor.devices import (
    freeze_modules,
    keep_freed_memory,
    prepare_compute_thread,
)
from spark_vision.executor.inference import is_out_of_memory
from spark_vision.executor.model_access import LoadedModel, stamp_of
from spark_vision.executor.spending import busy_time
from spark_vision.model_server.call_queue import Call
from spark_vision.model_server.channel import Message, describe_error
from spark_vision.model_server.start import ServerConfig
from spark_vision.models.caption_loop import CaptionLoop, EndedRow, join_rows
from spark_vision.models.checkpoint_files import Checkpoint, open_folder
from spark_vision.models.loading import use_tf32
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    LogitTerms,
    PixelScaling,
)

if TYPE_CHECKING:
    from spark_vision.model_server.server import ClientConnection

logger = logging.getLogger("spark_vision.model_server")

TakeMore = Callable[[int], Sequence[Call]]


class ModelCalls:
    """Answers calls with a loaded model; used by several threads.

    Args:
        loaded: The model.
        device: Its device.
        thread_count: Number of cores that one call may use on a CPU.
        row_limit: Maximum number of rows of joined calls.
    """

    def __init__(
        self, loaded: LoadedModel, device: torch.device, thread_count: int, row_limit: int
    ) -> None:
        self._loaded = loaded
        self._device = device
        self._thread_count = thread_count
        self._row_limit = row_limit
        self._fitting: dict[Hashable, int] = {}
        self._of_thread = threading.local()
        self.is_device_broken = False

    @classmethod
    def load(cls, config: ServerConfig) -> "ModelCalls":
        """Load the model of a server.

        Raises:
            UnsupportedCheckpointError: Its weights cannot be used, or changed since the query
                began.
        """
        keep_freed_memory()
        torch.set_num_threads(config.thread_count)
        if config.dtype == "tf32":
            use_tf32()
        checkpoint = open_folder(Path(config.folder))
        device, executor = torch.device(config.device), str(config.executor)
        _require_stamp(checkpoint, config)
        loaded = LoadedModel(checkpoint, config.dtype, device, executor, config.options)
        _require_stamp(checkpoint, config)
        freeze_modules()
        return cls(loaded, loaded.model.device, config.thread_count, config.joined_row_count)

    def prepare_thread(self) -> None:
        """Configure the calling thread, which then answers calls."""
        prepare_compute_thread(self._device, self._thread_count)

    def row_limit(self, kind: Hashable) -> int:
        """Return the maximum number of rows of joined calls of a kind."""
        return self._fitting.get(kind, self._row_limit)

    def answer(
        self, calls: Sequence[Call], take_more: Callable[[Hashable, int], Sequence[Call]]
    ) -> Iterator[tuple[Call, Message]]:
        """Compute the answers to calls of one kind, each of which may be an error.

        Args:
            calls: The calls.
            take_more: `CallQueue.take_more`, for a loop.

        Yields:
            Each call with its answer, and so the further calls of a loop.
        """
        if self.is_device_broken:
            raise RuntimeError("the device is broken")
        with busy_time.computing():
            for call, (header, tensors) in self._answer(calls, take_more):
                if "spent" in header:
                    header["spent"].update(busy_time.take())
                yield call, (header, tensors)

    def _answer(
        self, calls: Sequence[Call], take_more: Callable[[Hashable, int], Sequence[Call]]
    ) -> Iterator[tuple[Call, Message]]:
        first = calls[0]
        if first.is_loop and hasattr(self._loaded.model, "start_loop"):
            yield from self._answer_in_loop(calls, partial(take_more, first.kind))
            return
        answers = self._answer_joined(calls) if len(calls) > 1 else None
        for index, call in enumerate(calls):
            yield call, answers[index] if answers else self._answer_one(call)

    def _answer_in_loop(
        self, calls: Sequence[Call], take_more: TakeMore
    ) -> Iterator[tuple[Call, Message]]:
        in_progress: Collection[Call] = calls
        try:
            arguments = calls[0].header["arguments"]
            settings = GenerationSettings(**arguments["settings"])
            began = time.perf_counter_ns()
            loop = self._loaded.model.start_loop(_read_scaling(arguments), settings)
            captions = CaptionCalls(loop, calls, take_more, self.row_limit(calls[0].kind))
            in_progress = captions.rows
            for call, result in captions.run():
                if isinstance(result, Exception):
                    yield call, self._describe(call, result)
                else:
                    # Each answer says what the loop has taken since the last one.
                    now = time.perf_counter_ns()
                    yield call, ({"spent": {"model_ns": now - began}}, result._asdict())
                    began = now
        except Exception as error:
            self._check_device(error, in_progress)
            for call in in_progress:
                yield call, self._describe(call, error)
        self._free_memory()

    def _answer_joined(self, calls: Sequence[Call]) -> list[Message] | None:
        """Compute joined calls; None if that fails, so that an error reaches only its call."""
        row_counts = [call.row_count for call in calls]
        try:
            spent, result = self._call(calls)
            parts = {name: torch.split(tensor, row_counts) for name, tensor in result.items()}
            return [
                (
                    {"spent": {"model_ns": 0} if index else spent},
                    {name: part[index] for name, part in parts.items()},
                )
                for index in range(len(calls))
            ]
        except Exception as error:
            self._check_device(error, calls)
            if is_out_of_memory(error):
                self._fitting[calls[0].kind] = sum(row_counts) // 2
            logger.info("%d joined calls are repeated one by one: %s", len(calls), error)
        self._free_memory()
        return None

    def _answer_one(self, call: Call) -> Message:
        try:
            if call.header["method"] == "placement":
                return {"placement": asdict(self._loaded.placement)}, {}
            spent, result = self._call([call])
            return {"spent": spent}, result
        except ModelServerError:
            # Without an answer, the clients repeat their calls in the next server.
            raise
        except Exception as error:
            described = self._describe(call, error)
        self._free_memory()
        return described

    def _check_device(self, error: Exception, calls: Collection[Call]) -> None:
        """Raise the error of a broken device, unless one call alone is the cause.

        The device is broken for all threads. The server then ends without an answer, and each call
        that is in flight is computed alone by the next one.
        """
        self.is_device_broken |= isinstance(error, torch.AcceleratorError)
        if self.is_device_broken and not all(call.is_alone for call in calls):
            raise error

    def _describe(self, call: Call, error: Exception) -> Message:
        self._check_device(error, [call])
        if not isinstance(error, torch.OutOfMemoryError | ValueError | IndexError):
            logger.error("a call of %s failed", call.header.get("method"), exc_info=error)
        return {"error": describe_error(error)}, {}

    def _call(self, calls: Sequence[Call]) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
        started = time.perf_counter_ns()
        header, tensors = calls[0].header, calls[0].tensors
        if calls[0].kind is not None and (len(calls) > 1 or self._device.type == "cuda"):
            tensors = {name: self._gather(name, calls) for name in tensors}
        model, client = self._loaded.model, calls[0].client
        if hasattr(model, "until"):
            model = model.until(partial(_renew, model, client, [0]))
        result = _call_model(model, header["method"], header["arguments"], tensors)
        spent = {"model_ns": time.perf_counter_ns() - started}
        row_count = sum(call.row_count for call in calls)
        if row_count:
            spent |= {"forwards": 1, "forward_rows": row_count}
        return spent, result

    def _gather(self, name: str, calls: Sequence[Call]) -> torch.Tensor:
        """Concatenate a tensor of several calls, for a GPU in memory that it can copy from.

        The memory belongs to the thread, which uses it again once the calls are answered.
        """
        parts = [call.tensors[name] for call in calls]
        first = parts[0]
        shape = (sum(map(len, parts)), *first.shape[1:])
        buffers = self._of_thread.__dict__
        buffer = buffers.get(name)
        if buffer is None or buffer.numel() < math.prod(shape) or buffer.dtype != first.dtype:
            is_pinned = self._device.type == "cuda"
            buffer = torch.empty(math.prod(shape), dtype=first.dtype, pin_memory=is_pinned)
            buffers[name] = buffer
        # Rows are the outermost dimension in memory; the others keep their memory format.
        strides = (math.prod(first.shape[1:]), *first.stride()[1:])
        gathered = buffer.as_strided(shape, strides)
        torch.cat(parts, out=gathered)
        return gathered.to(self._device, non_blocking=True)

    def _free_memory(self) -> None:
        # Called outside exception handlers, whose traceback keeps the failed batch's tensors alive.
        if self._device.type == "cuda" and not self.is_device_broken:
            torch.cuda.empty_cache()


class CaptionCalls:
    """The calls whose rows are in one loop.

    Args:
        loop: An empty loop for the settings of the calls.
        calls: The first ones.
        take_more: Returns further calls with the same settings, of at most so many rows together.
        row_limit: Maximum number of rows that have not ended, if there are several calls.

    Attributes:
        rows: The calls in progress, each with its rows by number, which are None until they end.
    """

    def __init__(
        self, loop: CaptionLoop, calls: Sequence[Call], take_more: TakeMore, row_limit: int
    ) -> None:
        self.rows: dict[Call, dict[int, EndedRow | None]] = {call: {} for call in calls}
        self._loop = loop
        self._take_more = take_more
        self._row_limit = row_limit

    def run(self) -> Iterator[tuple[Call, Any]]:
        """Yield each call with its GeneratedTokens, or with the error that it caused."""
        yield from self._add(list(self.rows))
        while self.rows:
            for row in self._loop.step():
                yield from self._end(row)
            more = self._take_more(self._row_limit - len(self._loop))
            self.rows.update((call, {}) for call in more)
            yield from self._add(more)
            for call in list(self.rows):
                # Each step renews the time limit of all calls.
                call.client.begin()
                if call.client.has_left:
                    self._forget(call)
                    yield call, ConnectionError("the client has left")

    def _add(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Exception]]:
        for call in calls:
            try:
                # The client's memory is its next call's once this one is answered, even if rows
                # are left in the loop.
                tensors = {name: tensor.clone() for name, tensor in call.tensors.items()}
                self.rows[call] = dict.fromkeys(self._loop.add(CaptionBatch(**tensors)))
            except Exception as error:
                self._forget(call)
                yield call, error

    def _end(self, row: EndedRow) -> Iterator[tuple[Call, Any]]:
        call = next((each for each, rows in self.rows.items() if row.number in rows), None)
        if call is None:  # The call has failed, and its other rows are of no use.
            return
        rows = self.rows[call]
        rows[row.number] = row
        ended = [each for each in rows.values() if each is not None]
        if row.error is not None or len(ended) == len(rows):
            result = row.error or join_rows(ended)
            self._forget(call)
            yield call, result

    def _forget(self, call: Call) -> None:
        """Forget a call; of its rows, those that have entered end in the loop."""
        self._loop.drop(list(self.rows[call]))
        del self.rows[call]


def _call_model(
    model: Any, method: str, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Call a method of the model; `ModelProxy` has the client's half.

    Raises:
        ValueError: The method does not exist or may not be called.
    """
    match method:
        case "embed_images":
            scaling, pooling = _read_scaling(arguments), arguments["pooling"]
            return {"vectors": model.embed_images(tensors["pixels"], scaling, pooling)}
        case "embed_texts":
            return {"vectors": model.embed_texts(tensors)}
        case "logit_terms":
            terms: LogitTerms = model.logit_terms()
            return {name: term for name, term in terms._asdict().items() if term is not None}
        case "generate":
            settings = GenerationSettings(**arguments["settings"])
            generated: GeneratedTokens = model.generate(
                CaptionBatch(**tensors), _read_scaling(arguments), settings
            )
            return generated._asdict()
    raise ValueError(
        f"no method {method!r}; allowed: embed_images, embed_texts, logit_terms, generate"
    )


def _read_scaling(arguments: Mapping[str, Any]) -> PixelScaling:
    given = arguments["scaling"]
    return PixelScaling(given["rescale_factor"], tuple(given["mean"]), tuple(given["std"]))


def _renew(engine: Any, client: "ClientConnection", seen: list[int]) -> bool:
    """Renew a call's time limit if the engine has made progress; return if its client has left."""
    if engine.ended_row_count != seen[0]:
        seen[0] = engine.ended_row_count
        client.begin()
    return client.has_left


def _require_stamp(checkpoint: Checkpoint, config: ServerConfig) -> None:
    """Ensure that all rows of a query use one model, even if its server restarts."""
    if stamp_of(checkpoint) != config.stamp:
        raise UnsupportedCheckpointError(
            f"the files in {checkpoint.folder} have changed since the query began: run it again, "
            "and use a new folder for each checkpoint"
        )
