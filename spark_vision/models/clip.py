"""CLIP, Chinese-CLIP, SigLIP and SigLIP 2: vectors of images and texts in one space."""

from collections.abc import Mapping
from typing import Any

import torch

from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.loading import choose_dtype, load_pretrained
from spark_vision.models.pixel_batches import scale_pixels
from spark_vision.models.protocols import LogitTerms, PixelScaling


class ImageTextModel:
    """A loaded model with an image tower and a text tower.

    Args:
        model: A CLIPModel, ChineseCLIPModel or SiglipModel, ready for inference.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.device: torch.device = model.device
        self.modules = (model.vision_model, model.text_model)
        self._vision = model.config.vision_config

    @torch.inference_mode()
    def embed_images(
        self, pixels: torch.Tensor, scaling: PixelScaling, pooling: str
    ) -> torch.Tensor:
        """Compute the vector of each image; `pooling` must be `projection`.

        For sizes other than the one trained on, position embeddings are interpolated.
        """
        if pooling != "projection":
            raise ValueError(f"{type(self._model).__name__} has no pooling {pooling!r}")
        scaled = scale_pixels(pixels, scaling, self._model.device, self._model.dtype)
        return _to_vectors(self._model.get_image_features(**self._image_inputs(scaled)))

    def _image_inputs(self, pixels: torch.Tensor) -> dict[str, Any]:
        size = self._vision.image_size
        native = (size, size) if isinstance(size, int) else tuple(size)
        is_native = tuple(pixels.shape[-2:]) == native
        return {"pixel_values": pixels, "interpolate_pos_encoding": not is_native}

    @torch.inference_mode()
    def embed_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the vector of each text, in the same space as images."""
        moved = {name: ids.to(self._model.device) for name, ids in tokens.items()}
        return _to_vectors(self._model.get_text_features(**moved))

    @torch.inference_mode()
    def logit_terms(self) -> LogitTerms:
        """Return the trained scale of cosines, and SigLIP's bias."""
        bias = getattr(self._model, "logit_bias", None)
        return LogitTerms(
            scale=_to_scalar(self._model.logit_scale).exp(),
            bias=None if bias is None else _to_scalar(bias),
        )


class VariableResolutionModel(ImageTextModel):
    """A loaded Siglip2Model (NaFlex), whose images may have any number of patches.

    The images of a batch have one size here. So none is padded with patches, and no mask is needed.
    """

    def _image_inputs(self, pixels: torch.Tensor) -> dict[str, Any]:
        count, channels, height, width = pixels.shape
        size = self._vision.patch_size
        rows, columns = height // size, width // size
        squares = pixels.reshape(count, channels, rows, size, columns, size)
        patches = squares.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)
        # One shape for all images: position embeddings are interpolated once, and broadcast. The
        # model reads it on the CPU.
        return {"pixel_values": patches, "spatial_shapes": torch.tensor([[rows, columns]])}


def load(checkpoint: Checkpoint, dtype: str, device: torch.device) -> ImageTextModel:
    """Load a CLIP, Chinese-CLIP, SigLIP or SigLIP 2 checkpoint.

    Raises:
        UnsupportedCheckpointError: Weights are missing or have a wrong shape.
    """
    model = load_pretrained(checkpoint, choose_dtype(dtype, device), device)
    is_variable = checkpoint.model_type == "siglip2"
    return VariableResolutionModel(model) if is_variable else ImageTextModel(model)


def _to_scalar(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().to("cpu", torch.float32).reshape(1)


def _to_vectors(output: Any) -> torch.Tensor:
    # Since version 5, transformers returns the features as pooler_output.
    features: torch.Tensor = output.pooler_output
    return features.to("cpu", torch.float32).contiguous()
