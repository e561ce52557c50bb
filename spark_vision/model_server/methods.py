"""The model methods that can be called remotely: the worker's half and the server's half.

A call is a method name, JSON arguments and named tensors; a result is named tensors. A new method
of the model protocols needs a method of `RemoteModel` and a case of `call_model`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.executor.devices import keep_freed_memory
from spark_vision.executor.model_access import LoadedModel, stamp_of
from spark_vision.model_server.channel import Failure, Message, describe_failure
from spark_vision.model_server.start import ServerConfig
from spark_vision.models.checkpoint_files import Checkpoint, open_folder
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    LogitTerms,
    PixelScaling,
)

logger = logging.getLogger("spark_vision.model_server")

Tensors = Mapping[str, torch.Tensor]

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


class RemoteModel(ABC):
    """A model in another process, with the methods of the model protocols."""

    @abstractmethod
    def _compute(
        self, method: str, arguments: Mapping[str, Any], tensors: Tensors
    ) -> dict[str, torch.Tensor]:
        """Send a call and return its result."""

    def embed_images(
        self, pixels: torch.Tensor, scaling: PixelScaling, pooling: str
    ) -> torch.Tensor:
        """Compute as `ImageEmbedder.embed_images`."""
        arguments = {"scaling": asdict(scaling), "pooling": pooling}
        return self._compute("embed_images", arguments, {"pixels": pixels})["vectors"]

    def embed_texts(self, tokens: Tensors) -> torch.Tensor:
        """Compute as `TextEmbedder.embed_texts`."""
        return self._compute("embed_texts", {}, tokens)["vectors"]

    def logit_terms(self) -> LogitTerms:
        """Return as `TextClassifier.logit_terms`."""
        return LogitTerms(**self._compute("logit_terms", {}, {}))

    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Compute as `ImageCaptioner.generate`."""
        arguments = {"scaling": asdict(scaling), "settings": asdict(settings)}
        return GeneratedTokens(**self._compute("generate", arguments, batch._asdict()))


def call_model(
    model: Any, method: str, arguments: Mapping[str, Any], tensors: Tensors
) -> dict[str, torch.Tensor]:
    """Call a method of the model.

    Raises:
        ValueError: The method does not exist or may not be called.
    """
    match method:
        case "embed_images":
            scaling, pooling = _scaling(arguments), arguments["pooling"]
            return {"vectors": model.embed_images(tensors["pixels"], scaling, pooling)}
        case "embed_texts":
            return {"vectors": model.embed_texts(tensors)}
        case "logit_terms":
            terms: LogitTerms = model.logit_terms()
            return {name: term for name, term in terms._asdict().items() if term is not None}
        case "generate":
            settings = GenerationSettings(**arguments["settings"])
            generated: GeneratedTokens = model.generate(
                CaptionBatch(**tensors), _scaling(arguments), settings
            )
            return generated._asdict()
    raise ValueError(
        f"no method {method!r}; allowed: embed_images, embed_texts, logit_terms, generate"
    )


def _scaling(arguments: Mapping[str, Any]) -> PixelScaling:
    given = arguments["scaling"]
    return PixelScaling(given["rescale_factor"], tuple(given["mean"]), tuple(given["std"]))


def describe_error(error: Exception) -> Failure:
    """Return an error of a call as JSON."""
    kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _ERRORS), None)
    message = str(error) if kind else f"{type(error).__name__}: {error}"
    return describe_failure(kind or "RuntimeError", message)


def make_error(described: Failure) -> Exception:
    """Return the error that `describe_error` described."""
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
                return {"placement": asdict(self._loaded.placement)}, {}
            method, arguments = header["method"], header["arguments"]
            return {}, call_model(self._loaded.model, method, arguments, tensors)
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
    if stamp_of(checkpoint) != config.stamp:
        raise UnsupportedCheckpointError(
            f"the files in {checkpoint.folder} have changed since the query began: run it again, "
            "and use a new folder for each checkpoint"
        )
