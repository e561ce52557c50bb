"""Attention within windows: neighbours of equal length take one call of torch's attention.

The vision towers of Qwen-VL attend within windows, or within each image. Without flash-attn,
transformers calls torch once per window: 2,300 times for an image of a megapixel.
"""

from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

# transformers passes all windows of a layer in one call only where the name contains "flash".
NAME = "flash|sdpa_of_equal_windows"


def use_window_attention(vision_tower: Any) -> None:
    """Let a vision tower of transformers compute its windows of equal length together.

    The result is the same. On a GPU, the host would be busier than the device otherwise.
    """
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
    **flash_options: Any,
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
        **flash_options: Ignored.

    Returns:
        `[1, patches, heads, head_size]`, and no weights.
    """
    _, heads, patches, head_size = query.shape
    output = query.new_empty(1, patches, heads, head_size)
    start = 0
    for length, count in _runs(cu_seq_lens_q):
        end = start + length * count
        # [windows, heads, patches, head_size], without a copy.
        queries, keys, values = (
            tensor[0, :, start:end].view(heads, count, length, head_size).transpose(0, 1)
            for tensor in (query, key, value)
        )
        attended = scaled_dot_product_attention(queries, keys, values, scale=scaling)
        windows = output[0, start:end].view(count, length, heads, head_size)
        windows.copy_(attended.transpose(1, 2))
        start = end
    return output, None


# The layers of a pass share the tensor; to read it, the host waits for the device.
@lru_cache(maxsize=8)
def _runs(boundaries: torch.Tensor) -> list[tuple[int, int]]:
    """Return the lengths of the windows, and how many windows of a length follow each other."""
    return [(length, len(list(run))) for length, run in groupby(boundaries.diff().tolist())]
