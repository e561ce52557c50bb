"""The pixels of Spark's image struct as an RGB tensor."""

import torch

from spark_vision.errors import RowFailure
from spark_vision.images.sources import RawImage
from spark_vision.status import Status

_CHANNELS_OF_MODE = {0: 1, 16: 3, 24: 4}
"""OpenCV's CV_8UC1 (gray), CV_8UC3 (BGR) and CV_8UC4 (BGRA): all that Spark itself writes."""


def decode_raw(image: RawImage) -> torch.Tensor:
    """Turn gray, BGR or BGRA bytes into RGB, alpha composited on white.

    Args:
        image: Of at least one pixel.

    Returns:
        uint8 `[3, height, width]`, interleaved in memory.

    Raises:
        RowFailure: `unsupported_format`, `incomplete` or `decode_error`.
    """
    channels = _CHANNELS_OF_MODE.get(image.mode)
    if channels is None:
        raise RowFailure(
            Status.UNSUPPORTED_FORMAT,
            f"the image struct has the mode {image.mode}; read are 0 (gray), 16 (BGR), 24 (BGRA)",
        )
    expected = image.height * image.width * channels
    if channels != image.channels or len(image.data) > expected:
        raise RowFailure(
            Status.DECODE_ERROR,
            f"the image struct does not add up: {image.height} × {image.width} pixels of mode "
            f"{image.mode}, nChannels {image.channels}, {len(image.data):,} bytes",
        )
    if len(image.data) < expected:
        raise RowFailure(
            Status.INCOMPLETE,
            f"the image struct has {len(image.data):,} of {expected:,} bytes of pixels",
        )
    pixels = image.data.numpy().reshape(image.height, image.width, channels)
    if channels == 4:
        alpha = pixels[..., 3:].astype("uint16")
        # Adding 127 before the division by 255 rounds to the nearest.
        blended = (pixels[..., :3] * alpha + (255 - alpha) * 255 + 127) // 255
        pixels = blended.astype("uint8")
    rgb = pixels[..., [2, 1, 0]] if channels >= 3 else pixels.repeat(3, axis=2)
    return torch.from_numpy(rgb).permute(2, 0, 1)
