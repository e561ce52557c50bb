"""Computes the size to which an image is resized, exactly like Hugging Face's image processors."""

from collections.abc import Callable, Mapping

from spark_vision.errors import RowFailure, Status

ResizedSize = Callable[[int, int], tuple[int, int]]

# Resizing the shortest edge of a 1 × 60,000 image to 224 would take 9 GB before the crop. This
# limit is 100 MB, and allows an aspect ratio of 668 at that size.
MAX_RESIZED_PIXELS = 2**25


def resized_size_rule(size: Mapping[str, int | None]) -> ResizedSize | None:
    """Return the function from (height, width) to the resized (height, width) for a `size` setting.

    Args:
        size: `height` and `width`; or `shortest_edge`, with or without `longest_edge`.

    Returns:
        The function, or None for any other `size`.
    """
    named = {name: value for name, value in size.items() if value}
    match named:
        case {"shortest_edge": shortest, "longest_edge": longest, **rest} if not rest:
            return lambda height, width: _bounded(height, width, shortest, longest)
        case {"shortest_edge": shortest, **rest} if not rest:
            return lambda height, width: _shortest_edge(height, width, shortest)
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


def _shortest_edge(height: int, width: int, shortest: int) -> tuple[int, int]:
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)


def _bounded(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    short, long = sorted((height, width))
    edge: float = shortest
    if long / short * shortest > longest:
        edge = longest * short / long
        shortest = round(edge)
    if short == shortest:
        return height, width
    if width < height:
        return int(edge * height / width), shortest
    return shortest, int(edge * width / height)
