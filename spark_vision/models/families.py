"""Maps a checkpoint's `model_type` to its family, and loads its model.

`FAMILIES` is the only list of families; a new one needs a line there and a module with a `load`
function. This module imports neither torch nor transformers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from spark_vision.errors import InvalidOptionError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint, check_overrides, weight_names
from spark_vision.operators import OPERATORS, Operator, reads_images

if TYPE_CHECKING:
    import torch

    from spark_vision.models.protocols import ImageCaptioner, ImageEmbedder, TextEmbedder

    Model = ImageEmbedder | TextEmbedder | ImageCaptioner

_VIT = "spark_vision.models.vit"
_CLIP = "spark_vision.models.clip"
_QWEN_VL = "spark_vision.models.qwen_vl"
_VLLM = "spark_vision.models.vllm_engine"

FAMILIES: Mapping[str, tuple[str, str]] = {
    "vit": (_VIT, "ViTModel"),
    "dinov2": (_VIT, "Dinov2Model"),
    "dinov2_with_registers": (_VIT, "Dinov2WithRegistersModel"),
    "dinov3_vit": (_VIT, "DINOv3ViTModel"),
    "clip": (_CLIP, "CLIPModel"),
    "chinese_clip": (_CLIP, "ChineseCLIPModel"),
    "siglip": (_CLIP, "SiglipModel"),
    "siglip2": (_CLIP, "Siglip2Model"),
    "qwen2_vl": (_QWEN_VL, "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": (_QWEN_VL, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": (_QWEN_VL, "Qwen3VLForConditionalGeneration"),
}
"""By `model_type`: the module that loads it, and its class of transformers."""

# With fixed resolution, a SigLIP 2 checkpoint has the first one's model_type.
SIGLIP = ("siglip", "siglip2")
# The defaults of transformers, which published config.json files omit.
_HIDDEN_SIZE = 768
_HIDDEN_SIZE_OF_DINOV3 = 384
_PROJECTION_SIZE = 512


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, beyond its dtype and its device; others do not share the model.

    Attributes:
        flash_attention: Use the flash-attn package if it is installed and the device and family
            support it.
        torch_compile: Compile the model when it computes its first batch; only an ImageEmbedder
            can be compiled.
        vllm_arguments: Arguments of the vLLM engine that computes, as a JSON object; None:
            transformers computes.
    """

    flash_attention: bool = False
    torch_compile: bool = False
    vllm_arguments: str | None = None


def check_operator(checkpoint: Checkpoint, operator: Operator) -> int | None:
    """Check that a checkpoint supports an operator's options, without loading weights.

    Returns:
        The length of each vector, or of each token's vector with pooling `tokens`; None for a
        generative model.

    Raises:
        UnsupportedCheckpointError: Its family is unknown, not supported by the operator, or lacks
            the pooling.
        InvalidOptionError: `image_processor_kwargs` has an unknown setting, or a tag's text is too
            long.
    """
    family = _family(checkpoint).rpartition(".")[2]
    if family not in operator.families:
        fitting = [each for each in OPERATORS.values() if family in each.families]
        raise UnsupportedCheckpointError(
            f"{type(operator).__name__} cannot use {checkpoint.folder}, a checkpoint of model_type "
            f"{checkpoint.model_type!r}; use {' or '.join(each.__name__ for each in fitting)}"
        )
    if operator.effective_pooling == "pooler":
        _check_pooler(checkpoint)
    if operator.processor_overrides:
        check_overrides(checkpoint, operator.processor_overrides)
    vision = _vision_config(checkpoint)
    if reads_images(operator) and vision.get("num_channels", 3) != 3:
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder} expects images with {vision['num_channels']} channels; only RGB "
            "models are supported"
        )
    if checkpoint.model_type in SIGLIP and vision.get("vision_use_head") is False:
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder} has no attention pooling head (vision_use_head is false), so it "
            "has no image vectors in the space of its text vectors"
        )
    if operator.class_texts:
        _check_class_texts(checkpoint, type(operator).__name__, operator.class_texts)
    return _dimension(checkpoint, operator)


def load_model(
    checkpoint: Checkpoint,
    dtype: str,
    device: "torch.device",
    options: LoadOptions | None = None,
) -> "Model":
    """Load a checkpoint's model; a CLIP-like model is both an ImageEmbedder and a TextEmbedder.

    Args:
        checkpoint: A checkpoint of a supported family.
        dtype: float32, float16 or bfloat16; a CPU computes float16 as bfloat16.
        device: The device of the weights.
        options: Further options.

    Raises:
        InvalidOptionError: torch.compile does not work here.
        ModelServerError: vLLM cannot be imported.
        UnsupportedCheckpointError: The family is unknown, weights are missing or have a wrong
            shape, or the checkpoint generates in a way that vLLM does not have.
    """
    family, options = _family(checkpoint), options or LoadOptions()
    more: dict[str, Any] = {}
    if options.vllm_arguments is not None:
        family, more = _VLLM, {"arguments": json.loads(options.vllm_arguments)}
    elif family == _QWEN_VL:
        more = {"flash_attention": options.flash_attention}
    model = cast("Model", import_module(family).load(checkpoint, dtype, device, **more))
    if options.torch_compile:
        from spark_vision.models.loading import compile_modules

        compile_modules(cast(Any, model).modules)
    return model


def _family(checkpoint: Checkpoint) -> str:
    if checkpoint.model_type in FAMILIES:
        return FAMILIES[checkpoint.model_type][0]
    raise UnsupportedCheckpointError(
        f"{checkpoint.folder} has model_type {checkpoint.model_type!r}; supported: "
        f"{', '.join(FAMILIES)}"
    )


# A tokenizer takes up to a second to load, and an operator is checked by each task.
@lru_cache(maxsize=16)
def _check_class_texts(checkpoint: Checkpoint, owner: str, texts: tuple[str, ...]) -> None:
    needed = {"logit_scale", "logit_bias"} if checkpoint.model_type in SIGLIP else {"logit_scale"}
    missing = needed - weight_names(checkpoint)
    if missing:
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder} has no {' and '.join(sorted(missing))} in its weights, so the "
            "scores of tags are not defined; use a checkpoint of the whole model"
        )
    # Its import loads torch, which other checks do not need.
    from spark_vision.models.tokenizer import load_tokenizer

    truncated = load_tokenizer(checkpoint).find_truncated(list(texts))
    if truncated:
        raise InvalidOptionError(
            f"{owner} got the tag text {truncated[0]!r}, which has more tokens than the context of "
            f"{checkpoint.folder}; shorten the tag or the template"
        )


def _check_pooler(checkpoint: Checkpoint) -> None:
    if checkpoint.model_type != "vit":
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder} has model_type {checkpoint.model_type!r}, which has no trained "
            "pooler: its pooler_output is the CLS token; use pooling='cls'"
        )
    if not has_trained_pooler(checkpoint):
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder} has no trained pooler in its weights; use pooling='cls' or 'mean'"
        )


def has_trained_pooler(checkpoint: Checkpoint) -> bool:
    """Return whether a ViT checkpoint has pooler weights; many were published without them."""
    poolers = {"pooler.dense.weight", "vit.pooler.dense.weight"}
    return not poolers.isdisjoint(weight_names(checkpoint))


def _dimension(checkpoint: Checkpoint, operator: Operator) -> int | None:
    family = _family(checkpoint)
    if family == _QWEN_VL:
        return None
    config = checkpoint.config
    if family == _VIT:
        default = _HIDDEN_SIZE_OF_DINOV3 if checkpoint.model_type == "dinov3_vit" else _HIDDEN_SIZE
        hidden_size = config.get("hidden_size") or default
        if operator.effective_pooling == "pooler":
            return int(config.get("pooler_output_size") or hidden_size)
        return int(hidden_size)
    if checkpoint.model_type not in SIGLIP:
        return int(config.get("projection_dim") or _PROJECTION_SIZE)
    if "text" in operator.reads:
        text = config.get("text_config") or {}
        return int(text.get("projection_size") or text.get("hidden_size") or _HIDDEN_SIZE)
    vision = config.get("vision_config") or {}
    return int(vision.get("hidden_size") or _HIDDEN_SIZE)


def _vision_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    is_vit = _family(checkpoint) == _VIT
    return checkpoint.config if is_vit else checkpoint.config.get("vision_config") or {}
