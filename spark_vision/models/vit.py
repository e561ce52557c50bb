"""ViT, DINOv2 (with registers or without) and DINOv3: vectors of images."""

from typing import Any

import torch

from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.families import has_trained_pooler
from spark_vision.models.loading import choose_dtype, load_pretrained
from spark_vision.models.pixel_batches import scale_pixels
from spark_vision.models.protocols import PixelScaling


class VisionTransformer:
    """A loaded vision transformer.

    Args:
        model: A ViTModel, Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel, ready for
            inference.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.device: torch.device = model.device
        self.modules = (model,)
        config = model.config
        # The tokens are CLS, then registers where the family has them, then the patches.
        self._special_token_count = 1 + getattr(config, "num_register_tokens", 0)
        size = config.image_size
        self._native_size = (size, size) if isinstance(size, int) else tuple(size)
        # DINOv2 always interpolates its position embeddings; ViT only on request. DINOv3 has none:
        # it rotates by the position (RoPE).
        self._must_ask_to_interpolate = config.model_type == "vit"

    @torch.inference_mode()
    def embed_images(
        self, pixels: torch.Tensor, scaling: PixelScaling, pooling: str
    ) -> torch.Tensor:
        """Compute one vector, or one row of token vectors, per image.

        `mean` averages the patch tokens. `tokens` returns all of them after the last layer norm:
        CLS, registers, then patches row by row. For sizes other than the one trained on, position
        embeddings are interpolated. Pixels beyond the last whole patch are not used.
        """
        scaled = scale_pixels(pixels, scaling, self._model.device, self._model.dtype)
        options: dict[str, Any] = {}
        if self._must_ask_to_interpolate and tuple(pixels.shape[-2:]) != self._native_size:
            options["interpolate_pos_encoding"] = True
        output = self._model(scaled, **options)
        return self._pool(output, pooling).to("cpu", torch.float32).contiguous()

    def _pool(self, output: Any, pooling: str) -> torch.Tensor:
        tokens: torch.Tensor = output.last_hidden_state
        match pooling:
            case "cls":
                return tokens[:, 0]
            case "mean":
                return tokens[:, self._special_token_count :].mean(dim=1, dtype=torch.float32)
            case "pooler" if output.pooler_output is not None:
                pooled: torch.Tensor = output.pooler_output
                return pooled
            case "tokens":
                return tokens
        raise ValueError(f"{type(self._model).__name__} has no pooling {pooling!r}")


def load(checkpoint: Checkpoint, dtype: str, device: torch.device) -> VisionTransformer:
    """Load a ViT, DINOv2, DINOv2-with-registers or DINOv3 checkpoint.

    Raises:
        UnsupportedCheckpointError: Weights are missing or have a wrong shape.
    """
    options: dict[str, Any] = {}
    if checkpoint.model_type == "vit":
        options["add_pooling_layer"] = has_trained_pooler(checkpoint)
    model = load_pretrained(checkpoint, choose_dtype(dtype, device), device, **options)
    return VisionTransformer(model)
