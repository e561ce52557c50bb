"""The model methods that can be called remotely: the worker's half and the server's half.

A call is a method name, JSON arguments and named tensors; a result is named tensors, and what the
model spent on it. Of joined calls, the first one's answer says that for all. A new method of the
model protocols needs a method of `RemoteModel` and a case of `call_model`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from spark_vision.model_server.channel import Failure, describe_failure
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
            scaling, pooling = read_scaling(arguments), arguments["pooling"]
            return {"vectors": model.embed_images(tensors["pixels"], scaling, pooling)}
        case "embed_texts":
            return {"vectors": model.embed_texts(tensors)}
        case "logit_terms":
            terms: LogitTerms = model.logit_terms()
            return {name: term for name, term in terms._asdict().items() if term is not None}
        case "generate":
            settings = GenerationSettings(**arguments["settings"])
            generated: GeneratedTokens = model.generate(
                CaptionBatch(**tensors), read_scaling(arguments), settings
            )
            return generated._asdict()
    raise ValueError(
        f"no method {method!r}; allowed: embed_images, embed_texts, logit_terms, generate"
    )


def read_scaling(arguments: Mapping[str, Any]) -> PixelScaling:
    """Return the scaling of a call's pixels from its arguments."""
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
