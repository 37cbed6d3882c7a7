"""Curves over training steps, with what happened on the way marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.drawing.amounts import measured, percent, rounded, whole
from esper.drawing.markup import Markup, join, tag
from esper.drawing.scale import Scale, steps_scale, value_scale
from esper.drawing.states import css_class, ink_class
from esper.drawing.thin import Point, stretches, thinned

_TICKS = 6  # about so many numbers on the axis of values
_BADGE = 19.0  # width of a mark's number
_CHARACTER = 6.9  # mean width of one, of 13 px
_LEFT, _FIGURE = 54.0, 7.7  # room for an axis' numbers, and width of a character of them in the widest of usual fonts


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: What it shows.
        points: (step, value) in order; a value that is not finite is a gap.
        look: CSS class: "es-train", "es-validation", "es-control", or "es-run-0" and on.
        lost: Pieces of it that a rollback threw away, drawn faint.
        dots: Whether its points are dots without a line; of class "es-point-test" and the like.
    """

    label: str
    points: tuple[Point, ...]
    look: str
    lost: tuple[tuple[Point, ...], ...] = ()
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step.

    Attributes:
        step: When.
        number: What it is called in the list beside the chart.
        state: The state whose colour it has.
        title: What happened.
    """

    step: int
    number: int
    state: str
    title: str


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis.

    Attributes:
        title: What is measured.
        series: The curves, the first at the bottom.
        share: Whether values are shares of 1, shown in hundredths.
        marks: What happened.
        steps: Where the axis of steps ends.
    """

    title: str
    series: tuple[Series, ...]
    share: bool = False
    marks: tuple[Mark, ...] = ()
    steps: int = 1


@dataclass(frozen=True)
class Frame:
    """Where the curves of a panel lie on the paper."""

    x: Scale
    y: Scale


def frame(panel: Panel, width: float, height: float) -> Frame:
    """The scales of a panel on paper of this size."""
    right, bottom = 16.0, 30.0
    top = _legend_rows(panel, width) * 22 + 8 + (24 if panel.marks else 0)
    values = [value for series in panel.series for _, value in series.points]
    y = value_scale(values, height - bottom, top, share=panel.share)
    left = max(_LEFT, 9 + _FIGURE * max(len(_number(tick, panel.share)) for tick in y.ticks(_TICKS)))
    return Frame(steps_scale(panel.steps, left, width - right), y)


def curves(panel: Panel, width: float, height: float, *, name: str, points: int = 400) -> Markup:
    """A panel as SVG.

    Args:
        panel: What to draw.
        width: Of the paper.
        height: Of the paper.
        name: Unique in the page.
        points: How many of a curve's points are drawn, about.
    """
    at = frame(panel, width, height)
    inner = [_axes(panel, at, width), *_marks(panel.marks, at)]
    inner += [_series(series, at, points) for series in panel.series]
    inner += [_legend(panel, width), tag("g", class_="es-cursor-layer")]
    described = f"{panel.title} over {whole(panel.steps)} training steps. " + " ".join(map(_told, panel.series))
    return drawing(inner, width, height, name=name, title=panel.title, about=described)


def drawing(inner: Sequence[Markup], width: float, height: float, *, name: str, title: str, about: str) -> Markup:
    """An image with a name and a description, for eyes and for screen readers."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", about, id=f"{name}-desc"),
        join(inner),
        viewBox=f"0 0 {round(width)} {round(height)}",
        width=round(width),
        height=round(height),
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
        class_="es-drawing",
    )


def step_axis(x: Scale, top: float, bottom: float, count: int) -> Markup:
    """Grid lines and numbers of the axis of steps."""
    parts = []
    for tick in x.ticks(count):
        at = x(tick)
        anchor = "end" if at > x.end - 12 else "middle"
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="es-grid"))
        parts.append(tag("text", whole(tick), x=at, y=bottom + 18, text_anchor=anchor, class_="es-tick"))
    return join(parts)


def _axes(panel: Panel, at: Frame, width: float) -> Markup:
    top, bottom = at.y.end, at.y.start
    parts = [step_axis(at.x, top, bottom, 8 if width > 600 else 4)]
    for tick in at.y.ticks(_TICKS):
        parts.append(tag("line", x1=at.x.start, x2=at.x.end, y1=at.y(tick), y2=at.y(tick), class_="es-grid"))
        shown = _number(tick, panel.share)
        parts.append(tag("text", shown, x=at.x.start - 7, y=at.y(tick) + 4, text_anchor="end", class_="es-tick"))
    parts.append(tag("line", x1=at.x.start, x2=at.x.end, y1=bottom, y2=bottom, class_="es-axis"))
    return join(parts)


def _number(tick: float, share: bool) -> str:
    if not share:
        return rounded(tick)
    return percent(tick, 0 if abs(tick * 100 - round(tick * 100)) < 1e-6 else 1)


def _series(series: Series, at: Frame, limit: int) -> Markup:
    if series.dots:
        spots = [(at.x(step), at.y(value)) for piece in stretches(series.points) for step, value in piece]
        shape = [tag("path", d=f"M{x:.1f},{y - 6:.1f} l6,6 l-6,6 l-6,-6 z") for x, y in spots]
        return tag("g", join(shape), class_=f"es-point {series.look}")
    path = path_of(thinned(series.points, limit), at)
    lost = [tag("path", d=path_of(thinned(piece, limit // 4), at)) for piece in series.lost]
    faint = tag("g", join(lost), class_=f"es-series {series.look} es-lost") if lost else None
    return join([faint, tag("path", d=path, class_=f"es-series {series.look}")])


def path_of(points: Sequence[Point], at: Frame) -> str:
    """A line through points, broken at gaps; a point alone is a dot."""
    found = []
    for piece in stretches(points):
        places = [f"{at.x(step):.1f},{at.y(value):.1f}" for step, value in piece]
        found.append("M" + " ".join(places) + (" h0.1" if len(places) == 1 else ""))
    return " ".join(found)


def _marks(marks: Sequence[Mark], at: Frame) -> list[Markup]:
    """The marks; their numbers stand beside each other where they would lie upon each other."""
    places = apart([at.x(mark.step) for mark in marks], _BADGE, at.x.start, at.x.end)
    return [_mark(mark, at, place) for mark, place in zip(marks, places, strict=True)]


def apart(places: Sequence[float], least: float, start: float, end: float) -> list[float]:
    """Places, in order, moved as little as leaves so much between them; closer where there is no room for that.

    >>> apart([10, 12, 50], 10, 0, 100)
    [6.0, 16.0, 50.0]
    """
    least = min(least, (end - start) / max(1, len(places)))
    groups: list[list[float]] = []  # middle, members
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < least * (groups[-1][1] + groups[-2][1]) / 2:
            (late, more), (early, few) = groups.pop(), groups.pop()
            groups.append([(early * few + late * more) / (few + more), few + more])
        half = least * (groups[-1][1] - 1) / 2
        groups[-1][0] = min(max(groups[-1][0], start + half), end - half)
    return [middle + least * (at - (count - 1) / 2) for middle, count in groups for at in range(int(count))]


def _mark(mark: Mark, at: Frame, shifted: float) -> Markup:
    top = at.y.end
    badge = tag("circle", cx=shifted, cy=top - 14, r=8.5, class_=f"es-area {css_class(mark.state)}")
    number = tag(
        "text",
        mark.number,
        x=shifted,
        y=top - 10.2,
        text_anchor="middle",
        class_=f"es-badge-text {ink_class(mark.state)}",
    )
    x = at.x(mark.step)
    line = tag("path", d=f"M{shifted:.1f},{top - 5:.1f} L{x:.1f},{top + 3:.1f} V{at.y.start:.1f}", class_="es-mark")
    return tag("g", tag("title", mark.title), line, badge, number)


# ---- legend -------------------------------------------------------------------------------------------------------


def _legend(panel: Panel, width: float) -> Markup:
    parts = []
    for series, (x, row) in zip(panel.series, _legend_places(panel, width), strict=True):
        y = 14 + 22 * row
        if series.dots:
            sample = tag("path", d=f"M{x + 11:.0f},{y - 6} l6,6 l-6,6 l-6,-6 z", class_=f"es-point {series.look}")
        else:
            sample = tag("line", x1=x, x2=x + 22, y1=y, y2=y, class_=f"es-series {series.look}")
        parts += [sample, tag("text", series.label, x=x + 29, y=y + 4.5)]
    return tag("g", join(parts), aria_hidden="true")


def _legend_places(panel: Panel, width: float) -> list[tuple[float, int]]:
    places, x, row = [], _LEFT, 0
    for series in panel.series:
        own = 29 + _CHARACTER * len(series.label) + 18
        if x > _LEFT and x + own > width:
            x, row = _LEFT, row + 1
        places.append((x, row))
        x += own
    return places


def _legend_rows(panel: Panel, width: float) -> int:
    return 1 + max((row for _, row in _legend_places(panel, width)), default=0)


def _told(series: Series) -> str:
    finite = [point for piece in stretches(series.points) for point in piece]
    if not finite:
        return f"{series.label}: nothing measured."
    (first, begun), (last, ended) = finite[0], finite[-1]
    if len(finite) == 1:
        return f"{series.label}: {measured(begun)} at step {whole(first)}."
    return (
        f"{series.label}: from {measured(begun)} at step {whole(first)} to {measured(ended)} at step {whole(last)}, "
        f"at least {measured(min(value for _, value in finite))}, at most {measured(max(v for _, v in finite))}."
    )
