"""A whole and its shares, as one bar."""

from __future__ import annotations

from collections.abc import Sequence

from esper.drawing.amounts import percent
from esper.drawing.curves import drawing
from esper.drawing.markup import Markup, join, tag

Share = tuple[str, float, int]
"""What it is, how much of 1, and which colour of `states.SERIES`."""


def bar(shares: Sequence[Share], width: float, *, name: str, title: str) -> Markup:
    """Shares beside each other, the larger ones with their names on them."""
    x, parts = 0.0, []
    for label, share, colour in shares:
        long = share * width
        parts.append(
            tag(
                "rect",
                tag("title", f"{label}: {percent(share)}"),
                x=x,
                y=0,
                width=max(0.5, long - 1.5),
                height=30,
                rx=2,
                class_=f"es-fill-{colour}",
            )
        )
        x += long
    about = ", ".join(f"{label} {percent(share)}" for label, share, _ in shares)
    return drawing([join(parts)], width, 30, name=name, title=title, about=about)
