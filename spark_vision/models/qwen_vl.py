"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: generate texts about images."""

import copy
import itertools
import threading
from typing import Any

import torch

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.loading import load_pretrained
from spark_vision.models.logits_processor import HANDLED_FIELDS, RowwiseLogitsProcessor, stop_tokens
from spark_vision.models.pixel_batches import scale_pixels
from spark_vision.models.precision import choose_attention, choose_dtype
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    PixelScaling,
)

# Patches converted to floats at a time (10 MB), so that no second copy of a large batch is made.
SCALED_AT_ONCE = 4096
# One greedy text per row, overriding the generation_config.
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
    """A loaded Qwen-VL model.

    Args:
        model: A Qwen2VL-, Qwen2_5_VL- or Qwen3VLForConditionalGeneration, ready for inference.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._generation_config = model.generation_config
        # `generate` takes missing settings from the model's own config, so that is emptied.
        model.generation_config = type(self._generation_config)()
        self._claiming = threading.Lock()
        self._is_claimed = False
        self._of_thread = threading.local()

    @torch.inference_mode()
    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Generate a text about each image of a batch.

        Stop and padding tokens, and rules such as a ban on repeated n-grams, come from the
        checkpoint's generation_config; sampling comes from the settings. Search strategies of the
        generation_config, such as beam search, are ignored.
        """
        model = self._model_of_thread()
        device = model.device
        config = copy.deepcopy(self._generation_config)
        config.update(max_new_tokens=settings.max_new_tokens, **_ONE_TEXT, **HANDLED_FIELDS)
        logits_processor = RowwiseLogitsProcessor(batch, settings, self._generation_config, device)
        token_ids = batch.token_ids.to(device)
        is_image = token_ids == self._model.config.image_token_id
        output = model.generate(
            input_ids=token_ids,
            attention_mask=batch.attention_mask.to(device),
            mm_token_type_ids=is_image.int(),
            pixel_values=self._pixel_values(batch.patches, scaling),
            image_grid_thw=batch.grids.to(device),
            generation_config=config,
            logits_processor=[logits_processor],
        )
        return self._cut_at_stop(output[:, token_ids.shape[1] :].cpu(), settings, logits_processor)

    def _model_of_thread(self) -> Any:
        """Return this thread's own model object, which shares the weights.

        A model object stores the positions of the current batch, so threads cannot share it.
        """
        if not hasattr(self._of_thread, "model"):
            with self._claiming:
                model = _with_same_weights(self._model) if self._is_claimed else self._model
                self._is_claimed = True
            self._of_thread.model = model
        return self._of_thread.model

    def _cut_at_stop(
        self,
        new_ids: torch.Tensor,
        settings: GenerationSettings,
        logits_processor: RowwiseLogitsProcessor,
    ) -> GeneratedTokens:
        is_stop = torch.isin(
            new_ids, torch.tensor(stop_tokens(self._generation_config), dtype=torch.int64)
        )
        stopped = is_stop.any(dim=1)
        lengths = torch.where(stopped, is_stop.int().argmax(dim=1), new_ids.shape[1])
        if self._generation_config.forced_eos_token_id is not None:
            # A stop token at the last position was forced.
            stopped &= lengths < settings.max_new_tokens - 1
        return GeneratedTokens(new_ids, lengths, ~stopped, logits_processor.finite.cpu())

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


def _with_same_weights(model: Any) -> Any:
    weights = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


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
            "supported; remove them, or use stop tokens (eos_token_id)"
        )
    return QwenVLModel(model)
