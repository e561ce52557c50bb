"""Attention within windows: windows of equal length take one call of torch's attention.

The vision towers of Qwen-VL attend within windows, or within each image. Without flash-attn,
transformers calls torch once per window: 2,300 times for an image of a megapixel.
"""

from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

# transformers passes all windows of a layer in one call only where the name contains "flash".
NAME = "flash|sdpa_of_equal_windows"


def use_window_attention(vision_tower: Any) -> None:
    """Let a vision tower of transformers compute its windows of equal length together."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend_in_windows)
    vision_tower.config._attn_implementation = NAME


def attend_in_windows(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from each patch to those of its window, as an attention function of transformers.

    Args:
        module: The layer.
        query: `[1, heads, patches, head_size]`, like `key` and `value`.
        key: The keys.
        value: The values.
        attention_mask: None.
        scaling: The factor of the products.
        cu_seq_lens_q: int32 `[windows + 1]`: where each window starts, and where the last one ends.
        **_: Further arguments for flash-attn.

    Returns:
        `[1, patches, heads, head_size]`, and no weights.
    """
    # [patches, heads, head_size]
    inputs = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    output = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
    for windows in _windows_by_length(cu_seq_lens_q):
        queries, keys, values = (tensor[windows].transpose(1, 2) for tensor in inputs)
        attended = scaled_dot_product_attention(queries, keys, values, scale=scaling)
        output[windows] = attended.transpose(1, 2)
    return output[None], None


# The layers of a pass share the tensor; to read it, the host waits for the device.
@lru_cache(maxsize=8)
def _windows_by_length(boundaries: torch.Tensor) -> list[torch.Tensor]:
    """Return the patches of the windows of each length: int64 `[windows, patches]`."""
    starts, lengths = boundaries[:-1], boundaries.diff()
    return [
        starts[lengths == length, None] + torch.arange(length, device=boundaries.device)
        for length in sorted(set(lengths.tolist()))
    ]
