"""Writes a static, self-contained HTML page with rows of images under headings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from spark_vision.notebook import jpeg_source

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .5rem; }
p, figcaption { color: var(--soft); }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
img { width: 100%; height: 9rem; object-fit: contain; background: #8882; border-radius: .5rem; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
figcaption b { display: block; font-weight: 500; color: CanvasText; }
.asked img { outline: 3px solid #3b82f6; }
"""


@dataclass(frozen=True)
class Card:
    """An image with its caption.

    Attributes:
        path: The path of the image.
        title: The line under the image.
        lines: More lines, in smaller type.
        is_asked: Whether it is the query image, which is highlighted.
    """

    path: str
    title: str
    lines: tuple[str, ...] = ()
    is_asked: bool = False


@dataclass(frozen=True)
class Row:
    """Images under one heading."""

    heading: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading, a note and rows of images."""

    heading: str
    note: str
    rows: tuple[Row, ...]


def write_page(
    path: Path,
    title: str,
    notes: Sequence[str],
    sections: Sequence[Section],
    pictures: Mapping[str, bytes],
) -> None:
    """Write a page with embedded images.

    Args:
        path: The file to write, in UTF-8.
        title: The title of the page.
        notes: Paragraphs under the title.
        sections: The sections. All text is escaped.
        pictures: JPEG files by the path of their cards; a card without one shows only text.
    """
    sources = {name: jpeg_source(picture) for name, picture in pictures.items()}
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(note)}</p>" for note in notes)]
    for section in sections:
        body.append(f"<section><h2>{escape(section.heading)}</h2><p>{escape(section.note)}</p>")
        for row in section.rows:
            cards = "".join(_figure(card, sources.get(card.path)) for card in row.cards)
            heading = f"<h3>{escape(row.heading)}</h3>" if row.heading else ""
            body.append(f'{heading}<div class="row">{cards}</div>')
        body.append("</section>")
    text = "\n".join(body)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{text}\n</body></html>\n",
        encoding="utf-8",
    )


def _figure(card: Card, source: str | None) -> str:
    kind = ' class="asked"' if card.is_asked else ""
    picture = f'<img src="{source}" alt="{escape(card.title)}">' if source else ""
    lines = "<br>".join(escape(line) for line in card.lines)
    words = f"<figcaption><b>{escape(card.title)}</b>{lines}</figcaption>"
    return f"<figure{kind}>{picture}{words}</figure>"
