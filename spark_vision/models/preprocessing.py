"""A checkpoint's image processor as tensor operations on pixels, without rescale and normalise.

The settings come from the processor that transformers instantiates, never from its JSON file. A
processor with the common resize and crop is replaced by the same operations without its overhead
per image; any other is run itself.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize_image

from spark_vision.errors import (
    InvalidOptionError,
    RowFailure,
    SparkVisionError,
    Status,
    UnsupportedCheckpointError,
)
from spark_vision.images.decoding import ResizedSize
from spark_vision.models.checkpoint_files import Checkpoint, check_overrides
from spark_vision.models.protocols import ImagePreprocessor, PixelScaling
from spark_vision.operators.options import FrozenMapping

# Resizing the shortest edge of a 1 × 60,000 image to 224 would take 9 GB before the crop. This
# limit is 100 MB, and allows an aspect ratio of 668 at that size.
MAX_RESIZED_PIXELS = 2**25


def load_preprocessor(
    checkpoint: Checkpoint, overrides: Mapping[str, Any] | None
) -> ImagePreprocessor:
    """Load the image processor of a checkpoint.

    Args:
        checkpoint: The checkpoint with the processor.
        overrides: Settings by name that override the processor's own.

    Raises:
        InvalidOptionError: A setting is unknown, or its value is not allowed.
        UnsupportedCheckpointError: The processor cannot be loaded, has settings that are not
            supported, or does not return RGB images.
    """
    overrides = overrides or {}
    # It also validates the processor's files, before transformers reads them.
    check_overrides(checkpoint, overrides)
    processor = _instantiate(checkpoint, overrides)
    try:
        if checkpoint.model_type == "siglip2":
            return _variable_resolution(processor, checkpoint, overrides)
        return _fast_equivalent(processor) or _ProcessorWrapper(processor, checkpoint)
    except SparkVisionError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        if not overrides:
            raise UnsupportedCheckpointError(
                f"the image processor of {checkpoint.folder}, {type(processor).__name__}, has "
                f"settings that are not supported: {error}"
            ) from error
        raise InvalidOptionError(
            f"image_processor_kwargs got {overrides}, which the image processor of "
            f"{checkpoint.folder} does not accept ({error}); change or remove the settings"
        ) from error


class _ResizeAndCrop:
    """The common steps of image processors: resize, then centre crop; each may be off."""

    def __init__(
        self,
        size_rule: ResizedSize | None,
        interpolation: InterpolationMode,
        crop: tuple[int, int] | None,
        scaling: PixelScaling,
        as_floats: bool = False,
    ) -> None:
        self.scaling = scaling
        self._size_rule = size_rule
        self._interpolation = interpolation
        self._crop = crop
        self._as_floats = as_floats

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        return self._size_rule(height, width) if self._size_rule else (height, width)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[1:]
        if self._size_rule is not None:
            size = self._size_rule(height, width)
            check_resized_size(height, width, size)
            resize = partial(_resize, size=list(size), interpolation=self._interpolation)
            if self._as_floats:
                # A channel at a time, because floats take four times the memory of bytes.
                image = torch.cat([resize(channel[None].float()) for channel in image])
            else:
                image = resize(image)
        return image if self._crop is None else _cut_middle(image, *self._crop)


class _ProcessorWrapper:
    """The transformers processor itself, without its rescale and normalise steps."""

    def __init__(self, processor: Any, checkpoint: Checkpoint) -> None:
        self.scaling = scaling_of(processor)
        self._processor = processor
        size = dict(getattr(processor, "size", None) or {})
        self._rule = resized_size_rule(size) if getattr(processor, "do_resize", False) else None
        # Rejects a processor that returns patches or several crops here, not on every row.
        trial = torch.zeros(3, 64, 48, dtype=torch.uint8)
        try:
            result = self(trial)
        except Exception as error:
            raise _unusable(checkpoint, processor, str(error)) from error
        if result.ndim != 3 or result.shape[0] != 3:
            shape = list(result.shape)
            raise _unusable(checkpoint, processor, f"it returns the shape {shape}")

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if self._rule is not None:
            height, width = image.shape[1:]
            check_resized_size(height, width, self._rule(height, width))
        output = self._processor(
            images=image,
            do_rescale=False,
            do_normalize=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        pixels: torch.Tensor = output["pixel_values"][0]
        is_bytes = pixels.dtype == torch.uint8
        return pixels if is_bytes else pixels.round().clamp(0, 255).to(torch.uint8)


def _instantiate(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Any:
    from transformers import AutoImageProcessor

    factory: Any = AutoImageProcessor
    settings = overrides.thaw() if isinstance(overrides, FrozenMapping) else dict(overrides)
    try:
        return factory.from_pretrained(
            str(checkpoint.folder),
            backend="torchvision",
            local_files_only=True,
            trust_remote_code=False,
            **settings,
        )
    except Exception as error:
        if settings:
            raise InvalidOptionError(
                f"image_processor_kwargs got {settings!r}, which the image processor of "
                f"{checkpoint.folder} rejects: {error}"
            ) from error
        raise UnsupportedCheckpointError(
            f"cannot load the image processor of {checkpoint.folder}: {error}"
        ) from error


def _fast_equivalent(processor: Any) -> _ResizeAndCrop | None:
    """Return equivalent operations, or None if the processor may have other steps."""
    from transformers import DINOv3ViTImageProcessor
    from transformers.image_processing_backends import TorchvisionBackend

    kind = type(processor)
    # DINOv3's differs only in its order: it rescales bytes to floats before it resizes them.
    is_dinov3 = kind is DINOv3ViTImageProcessor
    steps = ["resize", "center_crop", "process_image", "preprocess"]
    steps += [] if is_dinov3 else ["_preprocess"]
    if not issubclass(kind, TorchvisionBackend) or processor.do_pad:
        return None
    if any(getattr(kind, step) is not getattr(TorchvisionBackend, step) for step in steps):
        return None
    rule = resized_size_rule(dict(processor.size)) if processor.do_resize else None
    interpolation = interpolation_of(processor.resample)
    if processor.do_resize and (rule is None or interpolation is None):
        return None
    crop = None
    if processor.do_center_crop:
        crop_size = dict(processor.crop_size)
        if not (crop_size.get("height") and crop_size.get("width")):
            return None
        crop = (crop_size["height"], crop_size["width"])
    return _ResizeAndCrop(
        rule,
        interpolation or InterpolationMode.BILINEAR,
        crop,
        scaling_of(processor),
        as_floats=is_dinov3 and processor.do_rescale,
    )


def _variable_resolution(
    processor: Any, checkpoint: Checkpoint, overrides: Mapping[str, Any]
) -> _ResizeAndCrop:
    """Return the resize step of SigLIP 2's processor; the model itself cuts out the patches."""
    from transformers import Siglip2ImageProcessor
    from transformers.models.siglip2.image_processing_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    patch_size = (checkpoint.config.get("vision_config") or {}).get("patch_size", 16)
    if type(processor) is not Siglip2ImageProcessor or processor.patch_size != patch_size:
        raise ValueError(f"it does not return patches of {patch_size} pixels, as the model expects")
    interpolation = interpolation_of(processor.resample)
    if not processor.do_resize or interpolation is None or "size" in overrides:
        raise ValueError("images are resized by max_num_patches alone, with a filter of torch")
    patch_count = processor.max_num_patches
    if type(patch_count) is not int or patch_count < 1:
        raise ValueError(f"max_num_patches is {patch_count!r}; allowed: an integer, at least 1")
    rule = partial(
        get_image_size_for_max_num_patches, patch_size=patch_size, max_num_patches=patch_count
    )
    return _ResizeAndCrop(rule, interpolation, None, scaling_of(processor))


def resized_size_rule(size: Mapping[str, int | None]) -> ResizedSize | None:
    """Return the function from (height, width) to the resized (height, width) for a `size` setting.

    Args:
        size: `height` and `width`; or `shortest_edge`, with or without `longest_edge`.

    Returns:
        The function, or None for any other `size`.
    """
    from transformers.image_transforms import get_size_with_aspect_ratio

    named = {name: value for name, value in size.items() if value}
    match named:
        case {"shortest_edge": shortest, **rest} if rest.keys() <= {"longest_edge"}:
            longest = rest.get("longest_edge")
            return lambda height, width: get_size_with_aspect_ratio(
                (height, width), shortest, longest
            )
        case {"height": fixed_height, "width": fixed_width, **rest} if not rest:
            return lambda height, width: (fixed_height, fixed_width)
    return None


def check_resized_size(height: int, width: int, resized: tuple[int, int]) -> None:
    """Reject an image with an aspect ratio too extreme to be resized.

    torch resizes the rows first, and then the columns of the result. For a 1 × 1,000,000 image, the
    former is large even if the resized image is small.

    Raises:
        RowFailure: With status `bad_dimensions`.
    """
    allowed = max(MAX_RESIZED_PIXELS, height * width)
    is_large = resized[0] * resized[1] > MAX_RESIZED_PIXELS or height * resized[1] > allowed
    if min(resized) < 1 or is_large:
        raise RowFailure(
            Status.BAD_DIMENSIONS,
            f"its {width}×{height} pixels would be resized to {resized[1]}×{resized[0]}",
        )


def _resize(image: torch.Tensor, size: list[int], interpolation: InterpolationMode) -> torch.Tensor:
    is_bilinear = interpolation is InterpolationMode.BILINEAR and image.dtype == torch.uint8
    if not is_bilinear or not _resizes_bytes() or list(image.shape[1:]) == size:
        resized: torch.Tensor = resize_image(image, size, interpolation=interpolation)
        return resized
    # What torchvision calls, without its checks, which take a seventh of the time. The strides
    # make torch keep the pixels interleaved if they are.
    batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
    upsample: Callable[..., torch.Tensor] = torch.ops.aten._upsample_bilinear2d_aa
    return upsample(batch, size, False)[0]


@cache
def _resizes_bytes() -> bool:
    """Return whether torch resizes bytes without converting them to floats."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def interpolation_of(resample: Any) -> InterpolationMode | None:
    """Translate a Pillow filter like the torchvision backend; None if it has no equivalent."""
    from transformers.image_utils import pil_torch_interpolation_mapping
    from transformers.utils.import_utils import is_torchvision_greater_or_equal

    if resample is None:
        return InterpolationMode.BILINEAR
    is_mode = isinstance(resample, InterpolationMode)
    mode = resample if is_mode else pil_torch_interpolation_mapping.get(resample)
    if mode == InterpolationMode.LANCZOS and not is_torchvision_greater_or_equal("0.27"):
        return InterpolationMode.BICUBIC
    if mode in (InterpolationMode.BOX, InterpolationMode.HAMMING):
        return None
    return mode


def scaling_of(processor: Any) -> PixelScaling:
    """Return the rescale and normalise steps of an image processor."""
    normalize = processor.do_normalize
    return PixelScaling(
        rescale_factor=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=_per_channel(processor.image_mean) if normalize else (0.0, 0.0, 0.0),
        std=_per_channel(processor.image_std) if normalize else (1.0, 1.0, 1.0),
    )


def _per_channel(value: float | Sequence[float]) -> tuple[float, float, float]:
    values = [value] * 3 if isinstance(value, int | float) else list(value)
    red, green, blue = values * 3 if len(values) == 1 else values
    return float(red), float(green), float(blue)


def _cut_middle(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crop the centre, padding a smaller image with black, and free the rest."""
    interleaved = image.permute(1, 2, 0)
    image_height, image_width = interleaved.shape[:2]
    top, left = max(0, image_height - height) // 2, max(0, image_width - width) // 2
    middle = interleaved[top : top + height, left : left + width]
    if middle.shape[0] < height or middle.shape[1] < width:
        padded = middle.new_zeros(height, width, 3)
        below, right = (height - middle.shape[0]) // 2, (width - middle.shape[1]) // 2
        padded[below : below + middle.shape[0], right : right + middle.shape[1]] = middle
        middle = padded
    return middle.contiguous().permute(2, 0, 1)


def _unusable(checkpoint: Checkpoint, processor: Any, reason: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        f"the image processor of {checkpoint.folder}, {type(processor).__name__}, does not return "
        f"one RGB image: {reason}"
    )
