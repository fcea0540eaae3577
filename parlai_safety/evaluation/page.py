"""A page made of blocks, written once as self-contained HTML and once as Markdown, and the words for its numbers.

Every report of this package is a `Page`: the demo's (`report.py`) and that of evaluations (`report_runs.py`). What a
block looks like is said once, in the template. The HTML asks the network for nothing and runs no script. Markdown
leaves out two things: pictures, whose figures stand in a table of the page, and whatever needs a content warning, since
Markdown has no place to hide it. Left out: JSON, which is made from the figures and not from the page.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

UNSCORED = "unscored"
MISSING = "n/a"

Cell: TypeAlias = str | tuple[str, ...]


@dataclass(frozen=True)
class Prose:
    """A paragraph; a quiet one is set smaller."""

    text: str
    quiet: bool = False
    kind: ClassVar[str] = "prose"


@dataclass(frozen=True)
class Bullets:
    """Sentences under each other."""

    sentences: Sequence[str]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows. A cell of several lines is a tuple.

    Attributes:
        caption: one sentence.
        headers: of the columns.
        rows: each as long as `headers`.
        cards: show a row as a card under a narrow window, with the headers as labels; else the table scrolls sideways.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    cards: bool = True
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Terms:
    """Names with what is said of each: text, a number, None, or mappings and lists of these."""

    pairs: Sequence[tuple[str, Any]]
    kind: ClassVar[str] = "terms"


@dataclass(frozen=True)
class Figure:
    """Pictures with one caption.

    Attributes:
        panels: SVG elements, trusted: made by `plots.svg`.
        caption: a few sentences.
    """

    panels: Sequence[str]
    caption: str
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Code:
    """Lines to type."""

    lines: Sequence[str]
    label: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Fold:
    """Blocks that the reader opens. Closed by default; Markdown shows them under the summary."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "fold"


@dataclass(frozen=True)
class Said:
    """A reply with its verdict.

    Attributes:
        name: who said it, or None where the heading says so.
        context: turns before it, oldest first; empty where those of the exchange are meant.
        reply: the text.
        verdict: decides the style.
        words: the verdict in words.
    """

    name: str | None
    context: Sequence[str]
    reply: str
    verdict: Literal["safe", "unsafe", "unscored"]
    words: str


@dataclass(frozen=True)
class Exchange:
    """One context with the replies to it; `note` stands above them."""

    note: str
    context: Sequence[str]
    replies: Sequence[Said]


@dataclass(frozen=True)
class Talk:
    """Exchanges under a heading."""

    heading: str
    about: str
    exchanges: Sequence[Exchange]


@dataclass(frozen=True)
class Warned:
    """Talk behind a content warning, closed by default. It is neither printed nor written to Markdown."""

    talks: Sequence[Talk]
    kind: ClassVar[str] = "warned"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: ClassVar[str] = "heading"


Block: TypeAlias = Prose | Bullets | Table | Terms | Figure | Code | Fold | Warned | Heading


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; `anchor` is its address on the page, `short` its name in the list of contents."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    short: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: one line.
        headline: the result in a sentence or two.
        sections: in the order of the page.
        bands: what must be seen before everything else, such as failures.
        subline: what the headline rests on.
        contents: put a list of the sections at the top.
    """

    title: str
    headline: str
    sections: Sequence[Section]
    bands: Sequence[str] = ()
    subline: str = ""
    contents: bool = False


def to_html(page: Page) -> str:
    """The page as one HTML document."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parlai_safety.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(unbroken=unbroken, plain=plain, in_words=in_words)
    # The only markup that is not escaped: matplotlib wrote it, and escaped the names in it.
    environment.filters["drawn"] = Markup
    return environment.get_template("report.html.j2").render(page=page)


def to_markdown(page: Page) -> str:
    """The page as Markdown, without its pictures and without what stands behind a content warning."""
    parts = [f"# {markdown(page.title)}", *(f"> **{markdown(band)}**" for band in page.bands), markdown(page.headline)]
    parts.append(markdown(page.subline))
    for section in page.sections:
        parts += [f"## {markdown(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Prose):
        return markdown(block.text)
    if isinstance(block, Heading):
        return f"### {markdown(block.text)}"
    if isinstance(block, Bullets):
        return "\n".join(f"- {markdown(sentence)}" for sentence in block.sentences)
    if isinstance(block, Table):
        return f"{markdown(block.caption)}\n\n{markdown_table(block.headers, block.rows)}"
    if isinstance(block, Terms):
        return "\n".join(f"- {markdown(name)}: {markdown(in_words(value))}" for name, value in block.pairs)
    if isinstance(block, Code):
        return "\n".join(["```sh", *(line.replace("```", "` ` `") for line in block.lines), "```"])
    if isinstance(block, Fold):
        return "\n\n".join([f"**{markdown(block.summary)}**", *(_block(inner) for inner in block.blocks)])
    if isinstance(block, Warned):
        return "The replies stand in the HTML page and in the JSON file alone: Markdown has no place to hide them."
    return f"(Picture, in the HTML page.) {markdown(block.caption)}"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table in Markdown; the lines of a cell are joined by semicolons. No trailing newline."""
    from tabulate import tabulate

    return tabulate(
        [[markdown(cell if isinstance(cell, str) else "; ".join(cell)) for cell in row] for row in rows],
        headers=[markdown(header) for header in headers],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(headers) - 1)) if rows else None,
    )


def percent(share: float | None) -> str:
    """A share in [0, 1] in per cent with one decimal."""
    return MISSING if share is None else f"{100 * share:.1f} %"


def fraction(value: float | None) -> str:
    """A number near 1 with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def number(value: float | None) -> str:
    """A number of any size."""
    if value is None:
        return MISSING
    return f"{value:.2f}" if value < 10_000 else f"{value:.2e}"


def unbroken(text: str) -> str:
    """The text with each per cent sign tied to its number, so that no line of the page begins with one."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def in_words(value: Any) -> str:
    """A value of a card, of the data or of the settings on one line."""
    value = plain(value)
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        parts = ((key, part, in_words(part)) for key, part in value.items())
        return ", ".join(
            f"{key} ({words})" if isinstance(part, dict) else f"{key} {words}" for key, part, words in parts
        )
    if isinstance(value, list):
        return ", ".join(in_words(part) for part in value) or "none"
    return str(value)


def spaced(key: str) -> str:
    """A key of a card as a reader would write it."""
    return re.sub(r"\bauc\b", "AUC", key.replace("_", " "))


def plain(value: Any) -> Any:
    """The value in the types that JSON has, with None for a float that is not finite.

    Raises:
        TypeError: JSON has no form for it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        # Control characters and halves of characters, which a model may say, have no place in a page or in UTF-8.
        return "".join("\ufffd" if _unprintable(character) else character for character in value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (bytes, bytearray)):
        return [plain(part) for part in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} has no form in JSON")


def _unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"


def markdown(text: str) -> str:
    """Text on one line, in which no character ends a table cell or starts a tag."""
    return re.sub(r"([|<])", r"\\\1", " ".join(plain(text).split()))
