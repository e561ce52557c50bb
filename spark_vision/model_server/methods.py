"""The methods of a model that can be called from another process: both sides of each, together.

A call is a method's name, JSON arguments and named tensors; a result is named tensors. A new method
of the models' protocols is one method of `RemoteModel` and one entry of `_SERVED`.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.executor.allocator import keep_freed_memory
from spark_vision.executor.model_access import digest_of, stamp_of
from spark_vision.executor.placement import PlacedModel
from spark_vision.model_server.channel import MAX_ERROR_CHARACTERS, Message
from spark_vision.model_server.start import ServerOrder
from spark_vision.models.checkpoint_files import Checkpoint, open_folder
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    PixelScaling,
)

logger = logging.getLogger("spark_vision.model_server")

Tensors = Mapping[str, torch.Tensor]
Call = Callable[[str, Mapping[str, Any], Tensors], dict[str, torch.Tensor]]

# What a caller can tell apart; any other error of a model comes back as a RuntimeError.
_ERRORS: Mapping[str, type[Exception]] = {
    error.__name__: error
    for error in (
        torch.OutOfMemoryError,
        torch.AcceleratorError,
        MemoryError,
        ValueError,
        IndexError,
        TypeError,
        RuntimeError,
    )
}


class RemoteModel:
    """A model in another process, with the methods of the models' protocols.

    Args:
        call: Carries a call there and its result back.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def embed_images(
        self, pixels: torch.Tensor, scaling: PixelScaling, pooling: str
    ) -> torch.Tensor:
        """Compute as `ImageEmbedder.embed_images`."""
        arguments = {"scaling": dataclasses.asdict(scaling), "pooling": pooling}
        return self._call("embed_images", arguments, {"pixels": pixels})["vectors"]

    def embed_texts(self, tokens: Tensors) -> torch.Tensor:
        """Compute as `TextEmbedder.embed_texts`."""
        return self._call("embed_texts", {}, tokens)["vectors"]

    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Compute as `ImageCaptioner.generate`."""
        arguments = {
            "scaling": dataclasses.asdict(scaling),
            "settings": dataclasses.asdict(settings),
        }
        return GeneratedTokens(**self._call("generate", arguments, batch._asdict()))


def _embed_images(model: Any, arguments: Mapping[str, Any], tensors: Tensors) -> Tensors:
    scaling = _scaling(arguments)
    return {"vectors": model.embed_images(tensors["pixels"], scaling, arguments["pooling"])}


def _embed_texts(model: Any, arguments: Mapping[str, Any], tensors: Tensors) -> Tensors:
    return {"vectors": model.embed_texts(tensors)}


def _generate(model: Any, arguments: Mapping[str, Any], tensors: Tensors) -> Tensors:
    settings = GenerationSettings(**arguments["settings"])
    generated: GeneratedTokens = model.generate(
        CaptionBatch(**tensors), _scaling(arguments), settings
    )
    return generated._asdict()


def _scaling(arguments: Mapping[str, Any]) -> PixelScaling:
    given = arguments["scaling"]
    return PixelScaling(given["rescale_factor"], tuple(given["mean"]), tuple(given["std"]))


_SERVED: Mapping[str, Callable[[Any, Mapping[str, Any], Tensors], Tensors]] = {
    "embed_images": _embed_images,
    "embed_texts": _embed_texts,
    "generate": _generate,
}


def serve(model: Any, method: str, arguments: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """Call a method of the model, where its name is one that may be called.

    Raises:
        ValueError: It is not.
    """
    if method not in _SERVED:
        raise ValueError(f"no method {method!r}; allowed: {', '.join(_SERVED)}")
    return _SERVED[method](model, arguments, tensors)


def describe_error(error: Exception) -> dict[str, str]:
    """Say an error of a call as JSON."""
    kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _ERRORS), None)
    said = str(error) if kind else f"{type(error).__name__}: {error}"
    return {"kind": kind or "RuntimeError", "message": said[:MAX_ERROR_CHARACTERS]}


def make_error(described: Mapping[str, str]) -> Exception:
    """Make the error again that `describe_error` said."""
    return _ERRORS[described["kind"]](described["message"])


class ModelCalls:
    """A model in its server, as calls reach it.

    Args:
        placed: The loaded model.
    """

    def __init__(self, placed: PlacedModel) -> None:
        self._placed = placed
        self.is_device_broken = False

    @classmethod
    def load(cls, order: ServerOrder) -> "ModelCalls":
        """Load what a server is started for.

        Raises:
            UnsupportedCheckpointError: Its weights cannot be used, or are others than the query's.
        """
        keep_freed_memory()
        torch.set_num_threads(order.thread_count)
        checkpoint = open_folder(Path(order.folder))
        device, executor = torch.device(order.device), str(order.executor)
        _require_stamp(checkpoint, order)
        placed = PlacedModel(checkpoint, order.dtype, device, executor, order.flash_attention)
        _require_stamp(checkpoint, order)
        return cls(placed)

    def prepare_thread(self, core_count: int) -> None:
        """Give a thread that computes its cores."""
        torch.set_num_threads(core_count)

    def answer(self, header: Mapping[str, Any], tensors: Tensors) -> Message:
        """Compute the answer to a call; an error is one."""
        try:
            if header["method"] == "placement":
                return {"placement": dataclasses.asdict(self._placed.placement)}, {}
            result = serve(self._placed.model, header["method"], header["arguments"], tensors)
            return {}, dict(result)
        except Exception as error:
            described = {"error": describe_error(error)}
            self.is_device_broken = isinstance(error, torch.AcceleratorError)
            if not isinstance(error, torch.OutOfMemoryError | ValueError | IndexError):
                logger.exception("a call of %s failed", header.get("method"))
        # Out of the handler, whose traceback would keep the failed batch's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return described, {}


def _require_stamp(checkpoint: Checkpoint, order: ServerOrder) -> None:
    """The rows before and after the restart of a server are of one model."""
    if digest_of(stamp_of(checkpoint)) != order.stamp:
        raise UnsupportedCheckpointError(
            f"the files in {checkpoint.folder} have changed since the query began: run it again, "
            "and put another checkpoint into another folder"
        )
