"""In which floating point type a model computes on a device, and by which attention."""

import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)

# Scaled dot product attention of torch itself: fast on every device, and no extra package.
ATTENTION = "sdpa"

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type that a model computes in.

    A CPU computes float16 as bfloat16, and says so once: CPUs have no products of float16, and
    emulating them takes hundreds of times longer.

    Args:
        name: float32, float16 or bfloat16.
        device: Where the model is.
    """
    if device.type == "cpu" and name == "float16":
        _say_float16_is_bfloat16()
        return torch.bfloat16
    return _DTYPES[name]


def choose_attention(flash_attention: bool, dtype: torch.dtype, device: torch.device) -> str:
    """Return the implementation of attention, in the words of transformers.

    Args:
        flash_attention: Whether the package flash-attn is wanted. Without it, without a GPU or in
            float32, it is torch's own, which is said once.
        dtype: What the model computes in.
        device: Where it is.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not flash_attention:
        return ATTENTION
    if device.type != "cuda" or dtype == torch.float32 or not is_flash_attn_2_available():
        _say_attention_is_torchs()
        return ATTENTION
    return "flash_attention_2"


@cache
def _say_attention_is_torchs() -> None:
    logger.warning(
        "use_flash_attention_2 needs the package flash-attn, a GPU and half precision; torch's own "
        "attention (SDPA) is used"
    )


@cache
def _say_float16_is_bfloat16() -> None:
    logger.warning("a CPU computes float16 as bfloat16, which it has fast products for")
