"""Tells what a demonstration found: as text on the terminal, and as sections of its page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import torch
from PIL import Image
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from torchvision.transforms.v2.functional import to_pil_image

from spark_vision.demo.gallery import Search
from spark_vision.demo.page import Card, Row, Section
from spark_vision.errors import RowFailure
from spark_vision.images.decoding import decode
from spark_vision.operators import ImageLimits


def tell_searches(heading: str, searches: Sequence[Search], captions: Mapping[str, str]) -> str:
    """Write searches as lines for a terminal.

    Args:
        heading: What was looked for.
        searches: Each asks with a text, or with a picture's path.
        captions: True captions by file name.
    """
    lines = [heading]
    for search in searches:
        lines.append(f"\n  {_name(search.asked, captions)}")
        lines += [f"    {hit.score:.3f}  {_name(hit.path, captions)}" for hit in search.hits]
    return "\n".join(lines)


def show_searches(
    heading: str, note: str, searches: Sequence[Search], captions: Mapping[str, str]
) -> Section:
    """Make a section of the page from searches; see `tell_searches`."""
    return Section(heading, note, tuple(_row(search, captions) for search in searches))


def load_pictures(files: DataFrame, paths: Iterable[str]) -> Mapping[str, Image.Image]:
    """Decode pictures for the page.

    Args:
        files: `path` and `content`, as `binaryFile` gives them.
        paths: Those that the page shows.

    Returns:
        Pictures by path; one that cannot be decoded is left out.
    """
    chosen = files.where(F.col("path").isin(sorted(set(paths)))).select("path", "content")
    pictures = {}
    for row in chosen.toLocalIterator():
        try:
            pictures[row.path] = to_pil_image(decode(_encoded(row.content), ImageLimits()))
        except RowFailure:
            continue
    return pictures


def _encoded(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content) or bytearray(1), dtype=torch.uint8)


def paths_of(sections: Iterable[Section]) -> Iterator[str]:
    """Name the pictures that sections show."""
    return (card.path for section in sections for row in section.rows for card in row.cards)


def _row(search: Search, captions: Mapping[str, str]) -> Row:
    found = tuple(
        Card(hit.path, _name(hit.path, captions), (f"cosine {hit.score:.3f}",))
        for hit in search.hits
    )
    if "/" not in search.asked:
        return Row(search.asked, found)
    asked = Card(search.asked, _name(search.asked, captions), ("asked with this",), is_asked=True)
    return Row(_name(search.asked, captions), (asked, *found))


def _name(asked: str, captions: Mapping[str, str]) -> str:
    file = PurePosixPath(asked).name
    return f"{captions[file]} ({file})" if file in captions else asked
