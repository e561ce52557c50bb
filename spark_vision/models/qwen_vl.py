"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: texts about images."""

import copy
import threading
from typing import Any

import torch

from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.loading import load_pretrained
from spark_vision.models.next_token import NextToken
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


class QwenVLModel:
    """A loaded model that writes about images.

    Args:
        model: A Qwen2VL-, Qwen2_5_VL- or Qwen3VLForConditionalGeneration, ready for inference.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # The model keeps the positions of a running batch in itself.
        self._generating = threading.Lock()

    @torch.inference_mode()
    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Write a text about each image of a batch.

        Stop and padding tokens, and rules such as a ban on repeated n-grams, come from the
        checkpoint's generation_config; how tokens are drawn comes from the settings.

        Args:
            batch: As `CaptionPreprocessor.collate` makes it.
            scaling: The processor's rescale and normalise steps.
            settings: How to generate.
        """
        device = self._model.device
        config, penalty = self._configure(settings)
        next_token = NextToken(batch, settings, penalty, device)
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
        return _cut_at_stop(output[:, token_ids.shape[1] :].cpu(), config, next_token.finite.cpu())

    def _configure(self, settings: GenerationSettings) -> tuple[Any, float]:
        """Return the checkpoint's configuration for this call, and the penalty, which is ours."""
        config = copy.deepcopy(self._model.generation_config)
        penalty = settings.repetition_penalty
        if penalty is None:
            penalty = config.repetition_penalty or 1.0
        config.update(
            max_new_tokens=settings.max_new_tokens,
            max_length=None,
            num_beams=1,
            do_sample=False,
            # None would be filled from the checkpoint's again.
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            return_dict_in_generate=False,
        )
        return config, float(penalty)

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
        UnsupportedCheckpointError: Weights are missing or misshapen.
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
    return QwenVLModel(model)


def _cut_at_stop(new_ids: torch.Tensor, config: Any, finite: torch.Tensor) -> GeneratedTokens:
    stops = config.eos_token_id
    if stops is None:
        stops = []
    elif isinstance(stops, int):
        stops = [stops]
    is_stop = torch.isin(new_ids, torch.tensor(stops, dtype=torch.int64))
    stopped = is_stop.any(dim=1)
    first_stop = is_stop.int().argmax(dim=1)
    lengths = torch.where(stopped, first_stop, new_ids.shape[1])
    return GeneratedTokens(new_ids, lengths, ~stopped, finite)
