"""The model methods that can be called remotely: client stubs and server implementations.

A call is a method name, JSON arguments and named tensors; a result is named tensors. A new method
of the model protocols needs one method of `RemoteModel` and one entry of `_METHODS`.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.executor.devices import keep_freed_memory
from spark_vision.executor.model_access import LoadedModel, digest_of, stamp_of
from spark_vision.model_server.channel import MAX_ERROR_CHARACTERS, Message
from spark_vision.model_server.start import ServerConfig
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

# Errors that are sent with their type; any other error of a model arrives as a RuntimeError.
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
    """A model in another process, with the methods of the model protocols.

    Args:
        call: Sends a call and returns its result.
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


_METHODS: Mapping[str, Callable[[Any, Mapping[str, Any], Tensors], Tensors]] = {
    "embed_images": _embed_images,
    "embed_texts": _embed_texts,
    "generate": _generate,
}


def serve(model: Any, method: str, arguments: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """Call a method of the model.

    Raises:
        ValueError: The method does not exist or may not be called.
    """
    if method not in _METHODS:
        raise ValueError(f"no method {method!r}; allowed: {', '.join(_METHODS)}")
    return _METHODS[method](model, arguments, tensors)


def describe_error(error: Exception) -> dict[str, str]:
    """Serialize an error of a call as JSON."""
    kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _ERRORS), None)
    message = str(error) if kind else f"{type(error).__name__}: {error}"
    return {"kind": kind or "RuntimeError", "message": message[:MAX_ERROR_CHARACTERS]}


def make_error(described: Mapping[str, str]) -> Exception:
    """Recreate the error that `describe_error` serialized."""
    return _ERRORS[described["kind"]](described["message"])


class ModelCalls:
    """Answers calls with a loaded model.

    Args:
        loaded: The model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
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
        checkpoint = open_folder(Path(config.folder))
        device, executor = torch.device(config.device), str(config.executor)
        _require_stamp(checkpoint, config)
        loaded = LoadedModel(checkpoint, config.dtype, device, executor, config.flash_attention)
        _require_stamp(checkpoint, config)
        return cls(loaded)

    def prepare_thread(self, core_count: int) -> None:
        """Set the number of cores of the calling thread."""
        torch.set_num_threads(core_count)

    def answer(self, header: Mapping[str, Any], tensors: Tensors) -> Message:
        """Compute the answer to a call, which may be an error."""
        try:
            if header["method"] == "placement":
                return {"placement": dataclasses.asdict(self._loaded.placement)}, {}
            result = serve(self._loaded.model, header["method"], header["arguments"], tensors)
            return {}, dict(result)
        except Exception as error:
            described = {"error": describe_error(error)}
            self.is_device_broken = isinstance(error, torch.AcceleratorError)
            if not isinstance(error, torch.OutOfMemoryError | ValueError | IndexError):
                logger.exception("a call of %s failed", header.get("method"))
        # Outside the handler, whose traceback would keep the tensors of the failed batch alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return described, {}


def _require_stamp(checkpoint: Checkpoint, config: ServerConfig) -> None:
    """Ensure that all rows of a query use one model, even if its server restarts."""
    if digest_of(stamp_of(checkpoint)) != config.stamp:
        raise UnsupportedCheckpointError(
            f"the files in {checkpoint.folder} have changed since the query began: run it again, "
            "and use a new folder for each checkpoint"
        )
