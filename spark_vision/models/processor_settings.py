"""Which settings of an image processor an operator may override, known without torch."""

from collections.abc import Mapping
from typing import Any

from spark_vision.errors import InvalidOptionError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import PROCESSOR_FILES, Checkpoint
from spark_vision.models.settings_files import read_settings

# What Hugging Face's image processors share, apart from what is not a setting of the pixels (the
# device, the format of tensors, grouping).
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
    """Refuse a setting that the checkpoint's image processor cannot have.

    Raises:
        InvalidOptionError: Naming the setting and those that there are.
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
                settings = read_settings(path)
                names |= settings.get("image_processor", settings).keys()
            except AttributeError as error:
                raise UnsupportedCheckpointError(
                    f"{path} has no settings of an image processor"
                ) from error
    return names
