"""In which floating point type a model computes on a device."""

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


@cache
def _say_float16_is_bfloat16() -> None:
    logger.warning("a CPU computes float16 as bfloat16, which it has fast products for")
