"""Pieces that the sections of a page are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from esper.drawing.markup import Markup, join, tag
from esper.drawing.states import look, swatch
from esper.report.bounds import TALL

WIDE, NARROW = 1000.0, 350.0
"""Widths of the two papers that everything is drawn on; the style shows the one that fits."""

Draw = Callable[[float, str], Markup]
"""From a width and a name that is unique in the page to a drawing."""


@dataclass(frozen=True)
class Place:
    """Where in the page a section stands.

    Attributes:
        prefix: What its ids begin with.
        level: Of its heading.
    """

    prefix: str
    level: int

    def id(self, name: str) -> str:
        """An id that is unique in the page."""
        return f"{self.prefix}-{name}"


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it holds numbers."""

    title: str
    number: bool = False


_ROLES = {
    "table": "table",
    "group": "rowgroup",
    "row": "row",
    "head": "columnheader",
    "name": "rowheader",
    "cell": "cell",
}


def section(place: Place, name: str, title: str, *content: Any, lead: Any = None) -> Markup:
    """A landmark with a heading."""
    heading = tag(f"h{place.level}", title, id=f"{place.id(name)}-h")
    said = None if lead is None else tag("p", lead, class_="lead")
    return tag(
        "section", heading, said, *content, id=place.id(name), aria_labelledby=f"{place.id(name)}-h", class_=name
    )


def drawn(name: str, draw: Draw, *more: Any, tall: str = "", data: dict[str, Any] | None = None) -> Markup:
    """A drawing for wide and for narrow screens, and what belongs under it.

    Args:
        name: Unique in the page.
        draw: Draws it.
        more: Under it.
        tall: What it is called, if it may be so tall that it scrolls by itself.
        data: Attributes of the figure.
    """
    both = [
        tag("div", draw(WIDE, f"{name}-w"), class_="wide"),
        tag("div", draw(NARROW, f"{name}-n"), class_="narrow"),
    ]
    held = scrolling(tall, *both, tall=True) if tall else join(both)
    return tag("figure", held, *more, id=name, **(data or {}))


def scrolling(title: str, *content: Any, tall: bool = False) -> Markup:
    """What may be wider or taller than the page scrolls by itself; the keyboard can do so too."""
    return tag("div", *content, class_="scroll tall" if tall else "scroll", tabindex=0, role="region", aria_label=title)


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Any]],
    *,
    attributes: Sequence[dict[str, Any]] = (),
    seen: bool = True,
    stacked: bool = False,
) -> Markup:
    """A table in a container of its own.

    Args:
        caption: What it shows.
        columns: Its columns; the first names the row.
        rows: Cells.
        attributes: Of each row, if any.
        seen: Whether eyes see the caption too.
        stacked: Whether narrow screens show each row as a block; roles keep it a table for screen readers.
    """
    roles = _ROLES if stacked else dict.fromkeys(_ROLES)
    head = [
        tag("th", column.title, scope="col", role=roles["head"], class_="n" if column.number else None)
        for column in columns
    ]
    body: list[Markup] = []
    for number, row in enumerate(rows):
        cells = [
            tag("th", cell, scope="row", role=roles["name"], class_="n" if column.number else None)
            if at == 0
            else tag("td", cell, role=roles["cell"], class_="n" if column.number else None)
            for at, (cell, column) in enumerate(zip(row, columns, strict=True))
        ]
        body.append(tag("tr", *cells, role=roles["row"], **(attributes[number] if attributes else {})))
    return scrolling(
        caption,
        tag(
            "table",
            tag("caption", tag("span", caption), class_=None if seen else "unseen"),
            tag("thead", tag("tr", *head, role=roles["row"]), role=roles["group"]),
            tag("tbody", *body, role=roles["group"]),
            class_="stacked" if stacked else None,
            role=roles["table"],
        ),
        tall=len(body) > TALL,
    )


def folded(title: str, *content: Any) -> Markup:
    """What is there for those who ask."""
    return tag("details", tag("summary", title), *content)


def chip(state: str, said: Any = None) -> Markup:
    """A state's name with a swatch of its colour and pattern."""
    return tag("span", swatch(state), look(state).label if said is None else said, class_="chip")
