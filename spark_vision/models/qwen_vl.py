"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: generate texts about images."""

from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.models.caption_loop import CaptionLoop, EndedRow, join_rows
from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.loading import load_pretrained
from spark_vision.models.pixel_batches import scale_pixels
from spark_vision.models.precision import ATTENTION, choose_attention, choose_dtype
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    PixelScaling,
)
from spark_vision.models.window_attention import use_window_attention

# Patches converted to floats at a time (10 MB), so that no second copy of a large batch is made.
SCALED_AT_ONCE = 4096


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
    import transformers

    classes = {
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    }
    precision = choose_dtype(dtype, device)
    attention = choose_attention(flash_attention, precision, device)
    model = load_pretrained(
        classes[checkpoint.model_type], checkpoint, precision, device, attention=attention
    )
    if attention == ATTENTION:
        use_window_attention(model.model.visual)
    if model.generation_config.stop_strings:
        raise UnsupportedCheckpointError(
            f"the generation_config of {checkpoint.folder} has stop_strings, which are not "
            "supported; remove them, or use stop tokens (eos_token_id)"
        )
    return QwenVLModel(model)
