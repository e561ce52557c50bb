"""The methods of a model that can be called from another process: both sides of each, together.

A call is a method's name, JSON arguments and named tensors; a result is named tensors. A new method
of the models' protocols is one method of `RemoteModel` and one entry of `_SERVED`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    PixelScaling,
)

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
_MAX_ERROR_CHARACTERS = 4000


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
    return {"kind": kind or "RuntimeError", "message": said[:_MAX_ERROR_CHARACTERS]}


def make_error(described: Mapping[str, str]) -> Exception:
    """Make the error again that `describe_error` said."""
    return _ERRORS[described["kind"]](described["message"])
