"""Formats the demo's results as text for the terminal and as sections of its page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_vision.demo.gallery import Search
from spark_vision.demo.page import Card, Row, Section
from spark_vision.notebook import thumbnail_of

THUMBNAIL_PIXELS = 240


@dataclass(frozen=True)
class Words:
    """Captions of images.

    Attributes:
        true: The correct captions by file name; empty for images without ground truth.
        written: The model's captions by path.
    """

    true: Mapping[str, str]
    written: Mapping[str, str]

    def title(self, path: str) -> str:
        """Return the title of an image: its correct caption, if known, and its file name."""
        file = PurePosixPath(path).name
        return f"{self.true[file]} ({file})" if file in self.true else file


@dataclass(frozen=True)
class Answer:
    """A question about an image, the model's answer, and the correct one if known."""

    path: str
    question: str
    answer: str | None
    right: str | None = None

    def __str__(self) -> str:
        """The question, the model's answer, and the correct answer if it differs."""
        line = f"{self.question}  {self.answer}"
        if self.right is None:
            return line
        return f"{line}  ✓" if self.answer == self.right else f"{line}  ✗ ({self.right})"


def format_searches(heading: str, searches: Sequence[Search], words: Words) -> str:
    """Format searches as lines for a terminal."""
    lines = [heading]
    for search in searches:
        lines.append(f"\n  {_asked(search, words)}")
        lines += [f"    {hit.score:.3f}  {words.title(hit.path)}" for hit in search.hits]
    return "\n".join(lines)


def searches_section(heading: str, note: str, searches: Sequence[Search], words: Words) -> Section:
    """Build a section of the page from searches."""
    return Section(heading, note, tuple(_row(search, words) for search in searches))


def format_answers(heading: str, answers: Sequence[Answer], words: Words) -> str:
    """Format answers as lines for a terminal, grouped by image."""
    lines = [heading]
    for path, given in _by_picture(answers).items():
        lines.append(f"\n  {words.title(path)}")
        lines += [f"    {answer}" for answer in given]
    return "\n".join(lines)


def answers_section(heading: str, note: str, answers: Sequence[Answer], words: Words) -> Section:
    """Build a section of the page from answers, with one card per image."""
    cards = tuple(
        Card(path, words.title(path), tuple(map(str, given)))
        for path, given in _by_picture(answers).items()
    )
    return Section(heading, note, (Row("", cards),))


def load_pictures(files: DataFrame, paths: Iterable[str]) -> Mapping[str, bytes]:
    """Load the thumbnails of the page.

    Args:
        files: `path` and `content`, as from `binaryFile`.
        paths: The images to load.

    Returns:
        JPEG files by path, without images that cannot be decoded.
    """
    chosen = files.where(F.col("path").isin(sorted(set(paths))))
    thumbnail = thumbnail_of("content", max_side=THUMBNAIL_PIXELS).thumbnail
    rows = chosen.select("path", thumbnail.alias("thumbnail")).collect()
    return {row.path: row.thumbnail for row in rows if row.thumbnail is not None}


def paths_of(sections: Iterable[Section]) -> Iterator[str]:
    """Return the paths of the images in sections."""
    return (card.path for section in sections for row in section.rows for card in row.cards)


def _by_picture(answers: Sequence[Answer]) -> Mapping[str, list[Answer]]:
    grouped: dict[str, list[Answer]] = {}
    for answer in answers:
        grouped.setdefault(answer.path, []).append(answer)
    return grouped


def _row(search: Search, words: Words) -> Row:
    found = tuple(
        _card(hit.path, words, f"cosine {hit.score:.3f}", is_asked=False) for hit in search.hits
    )
    if search.by_picture:
        found = (_card(search.asked, words, "query image", is_asked=True), *found)
    return Row(_asked(search, words), found)


def _card(path: str, words: Words, line: str, *, is_asked: bool) -> Card:
    lines = (line, f"caption: {words.written[path]}") if path in words.written else (line,)
    return Card(path, words.title(path), lines, is_asked)


def _asked(search: Search, words: Words) -> str:
    return words.title(search.asked) if search.by_picture else search.asked
