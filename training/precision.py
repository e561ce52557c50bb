"""Runs a model in bfloat16, as it is shipped, while float32 weights are what learns."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

# Images or texts at a time: their activations stay in the processor's cache, forward and backward.
_CHUNK = 64


def in_bfloat16(model: nn.Module, output: str, values: torch.Tensor, **others: Any) -> torch.Tensor:
    """Run a model with its weights rounded to bfloat16; gradients reach the float32 ones.

    Args:
        model: Whose weights are float32.
        output: Name of the wanted part of its output.
        values: The model's first argument, a batch; a float tensor is rounded too.
        others: Keyword arguments for every chunk.

    Returns:
        float32, with as many rows as `values`.
    """
    weights = {name: weight.bfloat16() for name, weight in model.named_parameters()}
    if values.is_floating_point():
        values = values.bfloat16()
    parts = [
        functional_call(model, weights, (part,), others)[output] for part in values.split(_CHUNK)
    ]
    return torch.cat(parts).float()
