"""What the page asks of a table or an index, and what it gets: the results of a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GalleryColumns:
    """Which columns the page uses.

    Attributes:
        image: Paths or URLs of the pictures; None means the key.
        caption: A text to show with each picture, or None.
        filters: Columns to filter by; their values are shown.
    """

    image: str | None = None
    caption: str | None = None
    filters: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All of them, once each."""
        given = [self.image, self.caption, *self.filters]
        return list(dict.fromkeys(name for name in given if name is not None))


@dataclass(frozen=True)
class FoundPicture:
    """One result of a search.

    Attributes:
        id: The row's key: an index's id, or a tuple of a table's keys.
        score: The cosine similarity to the query.
        address: The path or URL of its picture; None where the row has none.
        caption: Its caption, or None.
        values: The values of the filter columns.
    """

    id: Any
    score: float
    address: str | None
    caption: str | None
    values: Mapping[str, str]

    @property
    def title(self) -> str:
        """The key as a text."""
        return ", ".join(map(str, self.id)) if isinstance(self.id, tuple) else str(self.id)


def make_picture(
    id: Any, score: float, row: Mapping[str, Any], image: str, columns: GalleryColumns
) -> FoundPicture:
    """Return a result from the values of its row.

    Args:
        id: The row's key.
        score: Its score.
        row: Its values by column; one that is missing is null.
        image: The column of its picture's path or URL.
        columns: Which others the page uses.
    """
    address, caption = row.get(image), row.get(columns.caption) if columns.caption else None
    return FoundPicture(
        id=id,
        score=float(score),
        address=None if address is None else str(address),
        caption=None if caption is None else str(caption),
        values={name: str(row[name]) for name in columns.filters if row.get(name) is not None},
    )
