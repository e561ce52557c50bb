"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: texts about images."""

import copy
import threading
from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.loading import load_pretrained
from spark_vision.models.next_token import OWN_FIELDS, NextToken, stop_tokens
from spark_vision.models.pixel_batches import scale_pixels
from spark_vision.models.precision import choose_attention, choose_dtype
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    PixelScaling,
)

# Patches that become floats at a time, so that a large batch does not stand there twice: 10 MB.
SCALED_AT_ONCE = 4096
# One greedy text for each row, whatever else a generation_config asks for.
_ONE_TEXT: dict[str, Any] = {
    "max_length": None,
    "max_time": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "use_mtp": False,
    "constraints": None,
    "force_words_ids": None,
    "return_dict_in_generate": False,
}


class QwenVLModel:
    """A loaded model that writes about images.

    Args:
        model: A Qwen2VL-, Qwen2_5_VL- or Qwen3VLForConditionalGeneration, ready for inference.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._given = model.generation_config
        # Whatever a call leaves out is filled from the model's own, which says nothing now.
        model.generation_config = type(self._given)()
        # The model keeps the positions of a running batch in itself.
        self._generating = threading.Lock()

    @torch.inference_mode()
    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Write a text about each image of a batch.

        Stop and padding tokens, and rules such as a ban on repeated n-grams, come from the
        checkpoint's generation_config; how tokens are drawn comes from the settings. Its ways to
        search for a text, such as beams, are not followed.

        Args:
            batch: As `CaptionPreprocessor.collate` makes it.
            scaling: The processor's rescale and normalise steps.
            settings: How to generate.
        """
        device = self._model.device
        config = copy.deepcopy(self._given)
        config.update(max_new_tokens=settings.max_new_tokens, **_ONE_TEXT, **OWN_FIELDS)
        next_token = NextToken(batch, settings, self._given, device)
        token_ids = batch.token_ids.to(device)
        is_image = token_ids == self._model.config.image_token_id
        with self._generating:
            output = self._model.generate(
                input_ids=token_ids,
                attention_mask=batch.attention_mask.to(device),
                mm_token_type_ids=is_image.int(),
                pixel_values=self._pixel_values(batch.patches, scaling),
                image_grid_thw=batch.grids.to(device),
                generation_config=config,
                logits_processor=[next_token],
            )
        return self._cut_at_stop(output[:, token_ids.shape[1] :].cpu(), settings, next_token)

    def _cut_at_stop(
        self, new_ids: torch.Tensor, settings: GenerationSettings, next_token: NextToken
    ) -> GeneratedTokens:
        is_stop = torch.isin(new_ids, torch.tensor(stop_tokens(self._given), dtype=torch.int64))
        stopped = is_stop.any(dim=1)
        lengths = torch.where(stopped, is_stop.int().argmax(dim=1), new_ids.shape[1])
        if self._given.forced_eos_token_id is not None:
            # An end in the last place there is was forced.
            stopped &= lengths < settings.max_new_tokens - 1
        return GeneratedTokens(new_ids, lengths, ~stopped, next_token.finite.cpu())

    def _pixel_values(self, patches: torch.Tensor, scaling: PixelScaling) -> torch.Tensor:
        """Give each patch as many frames as the model takes at a time: `[patches, values]`."""
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
        checkpoint: Of one of the three families.
        dtype: float32, float16 or bfloat16.
        device: Where the weights stay.
        flash_attention: Use the package flash-attn where it and the device allow it.

    Raises:
        UnsupportedCheckpointError: Weights are missing or misshapen, or its texts end at strings.
    """
    import transformers

    classes = {
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    }
    precision = choose_dtype(dtype, device)
    model = load_pretrained(
        classes[checkpoint.model_type],
        checkpoint,
        precision,
        device,
        attention=choose_attention(flash_attention, precision, device),
    )
    if model.generation_config.stop_strings:
        raise UnsupportedCheckpointError(
            f"the generation_config of {checkpoint.folder} has stop_strings, which are not "
            "supported; take them out, or use stop tokens (eos_token_id)"
        )
    return QwenVLModel(model)
