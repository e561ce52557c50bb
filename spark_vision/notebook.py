"""Shows the images of a DataFrame in a notebook, as thumbnails with captions.

Executors read, decode and shrink the images; the driver gets small JPEG files and short texts.
"""

import base64
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from spark_vision.errors import (
    MAX_ROW_ERROR_CHARACTERS,
    InputTypeError,
    InvalidOptionError,
    in_one_line,
)
from spark_vision.operators import ImageLimits, ImageOperator, reads_images
from spark_vision.operators.thumbnail import ImageThumbnail
from spark_vision.spark.driver_checks import check_is_operator
from spark_vision.spark.udfs import operator_udf

MAX_ROWS = 100
MAX_SIDE = 512
_CELLS_PER_LINE = 5
_READING = ImageThumbnail(limits=ImageLimits(fetch_seconds=10, decode_seconds=10))


@dataclass(frozen=True)
class ImageGallery:
    """Thumbnails with captions; a notebook shows it as a table.

    Attributes:
        image_count: Number of images with a thumbnail.
        failed_count: Number of images without one; their cells have the status and the reason.
        html: The table, with the thumbnails in it.
    """

    image_count: int
    failed_count: int
    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def show_images(
    dataframe: DataFrame,
    image: Column | str = "content",
    caption: Column | str | Sequence[Column | str] = (),
    *,
    operator: ImageOperator | None = None,
    max_rows: int = 20,
    max_side: int = 160,
) -> ImageGallery | None:
    """Show the first images of a DataFrame in a notebook, with captions.

    In Jupyter, the result of a cell's last line is displayed. On Databricks, `displayHTML` displays
    it at once. Each image is decoded in a separate process within the operator's limits: one that
    cannot be shown has its status and the reason in its cell.

    Args:
        dataframe: One row per image. Sort it if the order matters.
        image: Images, as for `embed_image`.
        caption: A column of any type, or several: one line each under the image, cut at 200
            characters. They are shown as text, never as markup; null is left out.
        operator: Its options say how images are read: `image_src_type`, `limits`, `allow_paths`,
            `storage_options` and so on. None: `image_url`, and at most 10 seconds to fetch and 10
            to decode an image.
        max_rows: The maximum of rows, 1 to 100.
        max_side: The maximum width and height of a thumbnail in pixels, 1 to 512.

    Returns:
        The gallery; None where `displayHTML` has displayed it.

    Raises:
        InvalidOptionError: `max_rows` or `max_side` is not allowed.
        InputTypeError: The operator does not read images.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> gallery = show_images(photos.orderBy("path"), caption=["path", "length"], max_rows=3)
        >>> gallery
        ImageGallery(image_count=3, failed_count=0)
    """
    for name, given, most in (("max_rows", max_rows, MAX_ROWS), ("max_side", max_side, MAX_SIDE)):
        if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= most:
            raise InvalidOptionError(f"show_images: {name} got {given!r}; allowed: 1 to {most}")
    captions = [caption] if isinstance(caption, Column | str) else list(caption)
    rows = (
        dataframe.limit(max_rows)
        .select(
            thumbnail_of(image, operator, max_side=max_side).alias("image"),
            F.array(*map(_to_line, captions)).alias("lines"),
        )
        .collect()
    )
    failed_count = sum(row.image.thumbnail is None for row in rows)
    gallery = ImageGallery(len(rows) - failed_count, failed_count, _to_table(rows))
    display = _find_display_html()
    if display is None:
        return gallery
    display(gallery.html)
    return None


def thumbnail_of(
    image: Column | str, operator: ImageOperator | None = None, *, max_side: int
) -> Column:
    """Return a column of struct<thumbnail: binary, status, error>; thumbnails are JPEG files.

    Args:
        image: Images, as for `embed_image`.
        operator: Its options say how images are read; None as for `show_images`.
        max_side: The maximum width and height of a thumbnail in pixels.

    Raises:
        InputTypeError: The operator does not read images.
    """
    reading = _READING if operator is None else operator
    check_is_operator(reading)
    if not reads_images(reading):
        raise InputTypeError(
            f"show_images got {type(reading).__name__}; allowed: an operator that reads images, "
            "such as ImageViTEmbedding"
        )
    thumbnail = reading.convert(
        ImageThumbnail, max_side=max_side, on_error="null", max_failure_rate=None
    )
    column: Column = operator_udf(thumbnail, with_status=True)(image)
    return column


def jpeg_source(data: bytes) -> str:
    """Return a JPEG file as the source of an HTML image."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _to_line(caption: Column | str) -> Column:
    column = F.col(caption) if isinstance(caption, str) else caption
    # One character more than is shown, so that the end of a longer text is marked.
    return F.substring(column.cast("string"), 1, MAX_ROW_ERROR_CHARACTERS + 1)


def _to_table(rows: Sequence[Row]) -> str:
    # A table of attributes: sites that display notebooks remove styles.
    cells = [_to_cell(row) for row in rows]
    lines = [cells[at : at + _CELLS_PER_LINE] for at in range(0, len(cells), _CELLS_PER_LINE)]
    body = "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f"<table>\n{body}\n</table>"


def _to_cell(row: Row) -> str:
    lines = [escape(in_one_line(line)) for line in row.lines if line is not None]
    if row.image.thumbnail is None:
        picture = f"<b>{escape(row.image.status)}</b><br>{escape(row.image.error)}"
    else:
        alt = lines[0] if lines else "image"
        picture = f'<img src="{jpeg_source(row.image.thumbnail)}" alt="{alt}">'
    return f'<td align="center" valign="top">{"<br>".join([picture, *lines])}</td>'


def _find_display_html() -> Callable[[str], None] | None:
    """Databricks defines `displayHTML` in a notebook's own names, and not in a module's."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return None if shell is None else shell.user_ns.get("displayHTML")
