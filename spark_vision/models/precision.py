"""Chooses the dtype and the attention implementation of a model on a device."""

import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)

# torch's own scaled dot product attention: fast on every device, without an extra package.
ATTENTION = "sdpa"

_DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a model's computation.

    A CPU computes float16 as bfloat16, which is logged once: CPUs lack float16 multiplication, and
    emulating it takes hundreds of times longer.

    Args:
        name: An operator's `dtype`.
        device: The model's device.
    """
    if name == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if device.type == "cpu" and name == "float16":
        _warn_float16_is_bfloat16()
        return torch.bfloat16
    return _DTYPES[name]


def use_tf32() -> None:
    """Round float32 products to TF32 on GPUs, in this process: 10 bits of mantissa instead of 23.

    It is a setting of the whole process, so only a process with one model may use it.
    """
    torch.set_float32_matmul_precision("high")


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # Since Ampere; before, torch emulates it.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without AMX, also CPUs with AVX512_BF16 computed it at 0.57 times the rate of float32.
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def choose_attention(flash_attention: bool, dtype: torch.dtype, device: torch.device) -> str:
    """Return transformers' name of the attention implementation.

    Args:
        flash_attention: Whether to use the flash-attn package. If it is not installed, without a
            GPU, or in float32, torch's own attention is used, which is logged once.
        dtype: The dtype of the model's computation.
        device: The model's device.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not flash_attention:
        return ATTENTION
    if device.type != "cuda" or dtype == torch.float32 or not is_flash_attn_2_available():
        _warn_attention_is_torchs()
        return ATTENTION
    return "flash_attention_2"


@cache
def _warn_attention_is_torchs() -> None:
    logger.warning(
        "use_flash_attention_2 needs the flash-attn package, a GPU and half precision; torch's own "
        "attention (SDPA) is used"
    )


@cache
def _warn_float16_is_bfloat16() -> None:
    logger.warning("a CPU computes float16 as bfloat16, for which it has fast multiplication")
