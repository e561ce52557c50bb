"""Tries overridden processor settings once, so that wrong ones fail the job and not every row."""

import torch

from spark_vision.errors import InvalidOptionError, RowFailure
from spark_vision.models.pixel_batches import stack_pixels
from spark_vision.models.protocols import ImageEmbedder, ImagePreprocessor
from spark_vision.operators import ImageEmbeddingOperator

TRIAL_HEIGHT, TRIAL_WIDTH = 375, 500


def try_settings(
    model: ImageEmbedder,
    preprocessor: ImagePreprocessor,
    operator: ImageEmbeddingOperator,
) -> None:
    """Embed one gray image of typical size.

    Raises:
        InvalidOptionError: With these settings the model cannot compute an image.
    """
    gray = torch.full((TRIAL_HEIGHT, TRIAL_WIDTH, 3), 128, dtype=torch.uint8).permute(2, 0, 1)
    try:
        pixels = stack_pixels([preprocessor(gray)])
        vector = model.embed_images(pixels, preprocessor.scaling, operator.effective_pooling)
    except torch.OutOfMemoryError:
        raise
    except (RowFailure, RuntimeError, ValueError, TypeError) as error:
        raise _refusal(operator, f"{type(error).__name__}: {error}") from error
    if not torch.isfinite(vector).all():
        raise _refusal(operator, "the vector of a gray image is not finite")


def _refusal(operator: ImageEmbeddingOperator, reason: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"{type(operator).__name__}.image_processor_kwargs got {operator.image_processor_kwargs}, "
        f"with which the checkpoint {operator.checkpoint_name} cannot compute an image "
        f"({reason}); change or remove the settings"
    )
