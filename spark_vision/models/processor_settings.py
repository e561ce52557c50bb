"""The settings of an image processor that an operator may override; needs no torch."""

from collections.abc import Mapping
from typing import Any

from spark_vision.errors import InvalidOptionError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import PROCESSOR_FILES, Checkpoint
from spark_vision.models.config_files import read_config

# The common settings of Hugging Face's image processors that affect pixels; not device, tensor
# format and grouping.
COMMON_SETTINGS = (
    "crop_size",
    "default_to_square",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "pad_size",
    "resample",
    "rescale_factor",
    "size",
)
_NOT_SETTINGS = frozenset(
    ("auto_map", "feature_extractor_type", "image_processor_type", "processor_class")
)


def check_overrides(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> None:
    """Reject settings that the checkpoint's image processor does not have.

    Raises:
        InvalidOptionError: A setting is unknown; the message lists the allowed ones.
        UnsupportedCheckpointError: The processor's file cannot be read.
    """
    allowed = sorted({*COMMON_SETTINGS, *_own_settings(checkpoint)} - _NOT_SETTINGS)
    unknown = [name for name in overrides if name not in allowed]
    if unknown:
        raise InvalidOptionError(
            f"image_processor_kwargs got {unknown[0]!r}, which the image processor of "
            f"{checkpoint.folder} does not have; allowed: {', '.join(allowed)}"
        )


def _own_settings(checkpoint: Checkpoint) -> set[str]:
    names: set[str] = set()
    for file_name in PROCESSOR_FILES:
        path = checkpoint.folder / file_name
        if path.is_file():
            try:
                settings = read_config(path)
                names |= settings.get("image_processor", settings).keys()
            except AttributeError as error:
                raise UnsupportedCheckpointError(
                    f"{path} has no image processor settings"
                ) from error
    return names
