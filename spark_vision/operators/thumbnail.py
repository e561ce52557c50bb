"""The operator behind `show_images`: it shrinks images, and computes no model."""

from collections.abc import Mapping
from dataclasses import dataclass

from spark_vision.operators.base import ImageOperator
from spark_vision.operators.options import option


@dataclass(frozen=True, kw_only=True)
class ImageThumbnail(ImageOperator):
    """A small JPEG of each image. Of the options of an operator, only those of reading apply."""

    function = "show_images"
    families = ()
    work = "spark_vision.executor.thumbnails:Thumbnails"
    isolates_decoding = True

    max_side: int = option(160, "Maximum width and height in pixels.", minimum=1)

    @property
    def value_fields(self) -> Mapping[str, str]:
        """The encoded thumbnail."""
        return {"thumbnail": "binary"}
