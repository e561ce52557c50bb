"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: generate texts about images."""

from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.models.caption_loop import CaptionLoop, EndedRow, join_rows
from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.loading import (
    ATTENTION,
    choose_attention,
    choose_dtype,
    load_pretrained,
)
from spark_vision.models.pixel_batches import scale_pixels
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    PixelScaling,
)

# Patches converted to floats at a time (10 MB), so that no second copy of a large batch is made.
SCALED_AT_ONCE = 4096
# transformers passes all windows of a layer in one call only where the name contains "flash".
WINDOW_ATTENTION = "flash|sdpa_of_equal_windows"


class QwenVLModel:
    """A loaded Qwen-VL model.

    Args:
        model: A Qwen2VL-, Qwen2_5_VL- or Qwen3VLForConditionalGeneration, ready for inference.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.device: torch.device = model.device

    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Generate a text about each image of a batch of any size.

        Stop tokens, and rules such as a ban on repeated n-grams, come from the checkpoint's
        generation_config; sampling comes from the settings. Search strategies of the
        generation_config, such as beam search, are ignored.
        """
        loop = self.start_loop(scaling, settings)
        numbers = loop.add(batch)
        ended: dict[int, EndedRow] = {}
        while len(loop):
            for row in loop.step():
                if row.error is not None:
                    raise row.error
                ended[row.number] = row
        return join_rows([ended[number] for number in numbers])

    def start_loop(self, scaling: PixelScaling, settings: GenerationSettings) -> CaptionLoop:
        """Return an empty loop, which generates as `generate` does."""
        return CaptionLoop(
            self._model, settings, lambda patches: self._pixel_values(patches, scaling)
        )

    def _pixel_values(self, patches: torch.Tensor, scaling: PixelScaling) -> torch.Tensor:
        """Scale the patches and repeat each per frame of a temporal patch: `[patches, values]`."""
        device, dtype = self._model.device, self._model.dtype
        count, channels, height, width = patches.shape
        frames = self._model.config.vision_config.temporal_patch_size
        values = torch.empty((count, channels, frames, height, width), dtype=dtype, device=device)
        for start in range(0, count, SCALED_AT_ONCE):
            few = slice(start, start + SCALED_AT_ONCE)
            values[few] = scale_pixels(patches[None, few], scaling, device, dtype)[0].unsqueeze(2)
        return values.view(count, -1)


def load(
    checkpoint: Checkpoint, dtype: str, device: torch.device, flash_attention: bool = False
) -> QwenVLModel:
    """Load a Qwen-VL checkpoint.

    Args:
        checkpoint: A Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint.
        dtype: float32, float16 or bfloat16.
        device: The device of the weights.
        flash_attention: Use the flash-attn package if it is installed and the device supports it.

    Raises:
        UnsupportedCheckpointError: Weights are missing or have a wrong shape, or the
            generation_config has stop_strings.
    """
    precision = choose_dtype(dtype, device)
    attention = choose_attention(flash_attention, precision, device)
    model = load_pretrained(checkpoint, precision, device, attention=attention)
    if attention == ATTENTION:
        _use_window_attention(model.model.visual)
    if model.generation_config.stop_strings:
        raise UnsupportedCheckpointError(
            f"the generation_config of {checkpoint.folder} has stop_strings, which are not "
            "supported; remove them, or use stop tokens (eos_token_id)"
        )
    return QwenVLModel(model)


def _use_window_attention(vision_tower: Any) -> None:
    """Let a vision tower of transformers compute its windows of equal length together.

    The towers attend within windows, or within each image. Without flash-attn, transformers calls
    torch once per window: 2,300 times for an image of a megapixel. The result is the same. On a
    GPU, the host would be busier than the device otherwise.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(WINDOW_ATTENTION, attend_in_windows)
    vision_tower.config._attn_implementation = WINDOW_ATTENTION


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
