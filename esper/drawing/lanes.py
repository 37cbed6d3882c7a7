"""The lives of seeds: a lane for each, its states one after the other, its alpha below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.drawing.amounts import ALPHA, whole
from esper.drawing.curves import drawing, step_axis
from esper.drawing.markup import Markup, join, tag
from esper.drawing.scale import Scale, steps_scale
from esper.drawing.states import area, css_class, ink_class, look
from esper.drawing.thin import Point

_CHARACTER = 7.3
_MANY, _TOLD = 24, 6
_SPAN, _ALPHA, _GAP = 20.0, 22.0, 14.0
_LAST = 2.5  # width of a state that a seed came to at the last step


@dataclass(frozen=True)
class Span:
    """A state from one step to another, which is the same for one that a seed came to at the last step."""

    start: float
    end: float
    state: str


@dataclass(frozen=True)
class Lane:
    """The life of one seed.

    Attributes:
        label: Its name.
        spans: Its states in order.
        alpha: (step, alpha) where the curve bends; empty: alpha was never above 0.
        note: What it held, such as "mlp".
    """

    label: str
    spans: tuple[Span, ...]
    alpha: tuple[Point, ...] = ()
    note: str = ""


def lanes(seeds: Sequence[Lane], steps: int, width: float, *, name: str) -> Markup:
    """The lanes as SVG.

    Args:
        seeds: What to draw, from top to bottom.
        steps: Where the axis of steps ends.
        width: Of the paper; on narrow paper names stand above their lanes.
        name: Unique in the page.
    """
    narrow = width < 600
    column = 4.0 if narrow else min(240.0, 24 + _CHARACTER * max((len(_short(s.label)) for s in seeds), default=8))
    x = steps_scale(steps, column, width - 16)
    inner, top = [], 8.0
    for seed in seeds:
        inner.append(_lane(seed, x, top, narrow))
        top += _height(seed, narrow)
    height = top + 26
    axis = step_axis(x, 8.0, top, 4 if narrow else 8)
    about = " ".join(map(told, seeds[:20])) + (f" And {len(seeds) - 20} more." if len(seeds) > 20 else "")
    return drawing([axis, *inner], width, height, name=name, title="Lifecycle and alpha of each seed", about=about)


def told(seed: Lane) -> str:
    """A seed's life in a sentence."""
    shown = seed.spans[-_TOLD:]
    lived = "; ".join(f"{look(s.state).label} {_when(s)}" for s in shown)
    if len(shown) < len(seed.spans):
        lived = f"{len(seed.spans) - len(shown)} states, then {lived}"
    return f"{seed.label}: {lived or 'dormant throughout'}."


def _when(span: Span) -> str:
    if span.end == span.start:
        return f"at step {whole(span.end)}"
    return f"from step {whole(span.start)} to {whole(span.end)}"


def _height(seed: Lane, narrow: bool) -> float:
    return _SPAN + (_ALPHA + 4 if seed.alpha else 0) + _GAP + (18 if narrow else 0)


def _lane(seed: Lane, x: Scale, top: float, narrow: bool) -> Markup:
    title = tag("title", told(seed))
    label = tag("text", _short(seed.label), x=x.start if narrow else 4, y=top + 14.5, class_="es-mono es-strong")
    top += 18 if narrow else 0
    few = len(seed.spans) <= _MANY
    parts = [label, *([_span(span, x, top) for span in seed.spans] if few else _bands(seed.spans, x, top))]
    if seed.note and not narrow and seed.alpha:
        parts.append(tag("text", seed.note[:28], x=4, y=top + _SPAN + 17, class_="es-small"))
    if seed.alpha:
        parts.append(_curve(seed.alpha, x, top + _SPAN + 4))
    return tag("g", title, join(parts))


def _bands(spans: Sequence[Span], x: Scale, top: float) -> list[Markup]:
    """Many states: a shape for all spans of a state, without names."""
    shapes: dict[str, list[str]] = {}
    for span in spans:
        left, wide = x(span.start), _wide(span, x)
        shapes.setdefault(span.state, []).append(f"M{left:.1f},{top:.0f}h{wide:.1f}v{_SPAN:.0f}h-{wide:.1f}z")
    return [tag("path", d="".join(shape), class_=f"es-band {css_class(state)}") for state, shape in shapes.items()]


def _wide(span: Span, x: Scale) -> float:
    return max(_LAST if span.end == span.start else 0.8, x(span.end) - x(span.start))


def _span(span: Span, x: Scale, top: float) -> Markup:
    left, right, shown = x(span.start), x(span.end), look(span.state)
    title = tag("title", f"{shown.label} {_when(span)}; {shown.about}")
    box = area(span.state, left, top, _wide(span, x), _SPAN, title)
    if right - left < 12 + 6.6 * len(shown.label):
        return box
    middle = (left + right) / 2
    on = ink_class(span.state)
    wide = 8 + 6.4 * len(shown.label)
    back = tag("rect", x=middle - wide / 2, y=top + 3, width=wide, height=_SPAN - 6, rx=3, fill=shown.colour)
    plate = back if shown.pattern != "none" else None
    return join(
        [box, plate, tag("text", shown.label, x=middle, y=top + 14.2, text_anchor="middle", class_=f"es-label {on}")]
    )


def _curve(alpha: Sequence[Point], x: Scale, top: float) -> Markup:
    y = Scale(0.0, 1.0, top + _ALPHA - 1, top + 1)
    places = [f"{x(step):.1f},{y(value):.1f}" for step, value in alpha]
    first, last = (f"{x(step):.1f},{y(0):.1f}" for step in (alpha[0][0], alpha[-1][0]))
    return join(
        [
            tag("line", x1=x.start, x2=x.end, y1=y(0), y2=y(0), class_="es-grid"),
            tag("path", d=f"M{first} {' '.join(places)} {last}", class_="es-alpha-area") if len(places) <= 60 else None,
            tag("path", d=f"M{' '.join(places)}", class_="es-alpha"),
            tag("text", ALPHA, x=x.start - 12, y=y(0) - 5, class_="es-small") if x.start > 30 else None,
        ]
    )


def _short(label: str) -> str:
    """A long name's end, which tells it from its neighbours."""
    return label if len(label) <= 28 else f"…{label[-27:]}"
