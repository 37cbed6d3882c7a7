"""Loss and metrics over the steps, with what grew marked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from esper.drawing.amounts import scored, whole
from esper.drawing.curves import Mark, Panel, Series, curves, frame
from esper.drawing.markup import Markup, tag
from esper.drawing.thin import thinned
from esper.report.bounds import MARKS, PANELS, PIECES, POINTS, TABLE_ROWS, cut
from esper.report.elements import NARROW, WIDE, Column, Place, chip, drawn, folded, section, table
from esper.report.read import Event, RunData
from esper.report.timeline import LOOKS, curve, is_share, label, names_measured, planned_steps, scores

_HEIGHT, _LOW = 330.0, 300.0
_WEIGHT = ("fossilized", "rollback", "give_up", "germinate", "grafting", "culled", "active", "error_recovery")
"""Events that are marked, those first that are kept when there are too many."""

_NAMES = {"train": "training", "validation": "validation", "test": "test"}


def charts(run: RunData, place: Place) -> Markup:
    """The section."""
    marks, left_out = marks_of(run.events)
    found = panels(run, marks)
    if not found:
        return section(place, "curves", "Curves", lead="No evaluation has been recorded yet.")
    figures = [chart(panel, place.id(f"curve{number}")) for number, panel in enumerate(found)]
    return section(place, "curves", "Curves", *figures, _events(marks, left_out, place))


def chart(panel: Panel, name: str) -> Markup:
    """A panel, what its cursor reads, and its table."""
    data = {"data_chart": name}
    readout = tag(
        "div",
        tag("label", "Step", for_=f"{name}-step"),
        tag("input", type="range", id=f"{name}-step", min=0, max=0, value=0, step=1),
        tag("output", for_=f"{name}-step", id=f"{name}-read", aria_live="off"),
        class_="readout",
        hidden=True,
    )
    return drawn(
        name,
        lambda width, own: curves(panel, width, _HEIGHT if width > 600 else _LOW, name=own, points=_points(width)),
        tag("figcaption", panel.title),
        readout,
        tag("script", _json(_readings(panel)), type="application/json", id=f"{name}-data"),
        folded(f"{panel.title} as a table", _table(panel)),
        data=data,
    )


def panels(run: RunData, marks: Sequence[Mark]) -> list[Panel]:
    """A panel for the loss, and for each metric."""
    told = (*run.events, *run.control)
    measures = list(dict.fromkeys(name.partition("_")[2] for name in names_measured(told)))
    measures = sorted(measures, key=lambda name: name != "loss")[:PANELS]
    steps = max(planned_steps(run.events), planned_steps(run.control))
    found = [Panel(_title(name), _series(run, name), is_share(told, name), tuple(marks), steps) for name in measures]
    return [panel for panel in found if panel.series]


def _title(name: str) -> str:
    said = cut(name.replace("_", " "), 40)
    return said[:1].upper() + said[1:]


def _series(run: RunData, name: str) -> tuple[Series, ...]:
    # Until something grows the control's curve is that of the run, which lies upon it.
    lines = (
        (_NAMES["train"], run.events, "train"),
        ("control (validation)", run.control, "validation"),
        (_NAMES["validation"], run.events, "validation"),
    )
    found = []
    for said, events, part in lines:
        held = curve(events, f"{part}_{name}")
        look = "es-control" if events is run.control else f"es-{part}"
        if held.points:
            found.append(Series(said, held.points, look, held.lost[:PIECES]))
    for events, said, look in (
        (run.events, "test", "es-point-test"),
        (run.control, "control (test)", "es-point-control"),
    ):
        points = [(event.step, event.number(f"test_{name}")) for event in scores(events).values()]
        points = [point for point in points if math.isfinite(point[1])]
        # Both begin with the same untrained host: one diamond is enough.
        points = points if look == "es-point-test" else points[-1:]
        if points:
            found.append(Series(said, tuple(points), look, dots=True))
    return tuple(found)


# ---- events -------------------------------------------------------------------------------------------------------


def marks_of(events: Sequence[Event]) -> tuple[list[Mark], int]:
    """The events worth marking, in order, and how many were left out."""
    worth = [event for event in events if event.event in _WEIGHT]
    kept = set()
    for kind in _WEIGHT:
        own = [place for place, event in enumerate(worth) if event.event == kind]
        kept |= set(spread(own, MARKS - len(kept)))
    shown = [worth[place] for place in sorted(kept)]
    marks = [
        Mark(event.step, number, LOOKS.get(event.event, "DORMANT"), f"step {whole(event.step)}: {said(event)}")
        for number, event in enumerate(shown, start=1)
    ]
    return marks, len(worth) - len(shown)


def spread(places: Sequence[int], count: int) -> list[int]:
    """So many of them, from all over.

    >>> spread(range(100), 4)
    [0, 33, 66, 99]
    """
    if len(places) <= count:
        return list(places)
    return [places[round(at * (len(places) - 1) / max(1, count - 1))] for at in range(count)]


def said(event: Event) -> str:
    """What happened, in a few words."""
    made = f" {event.figures['blueprint']}" if event.event == "germinate" and "blueprint" in event.figures else ""
    where = f" {label(event.place)}" if event.place else ""
    return cut(f"{event.event.replace('_', ' ')}{made}{where}", 90)


def _events(marks: Sequence[Mark], left_out: int, place: Place) -> Markup | None:
    if not marks:
        return tag("p", "Nothing germinated, so nothing is marked.", class_="note")
    items = [tag("li", tag("b", mark.number, class_="mark"), chip(mark.state, mark.title)) for mark in marks]
    more = f" {whole(left_out)} more are not marked; the decisions below have them." if left_out else ""
    return tag(
        "div",
        tag(f"h{min(6, place.level + 1)}", "Marked in the curves"),
        tag("ol", *items, class_="events"),
        tag("p", more, class_="note") if more else None,
    )


# ---- readings -----------------------------------------------------------------------------------------------------


def _points(width: float) -> int:
    return POINTS if width > 600 else POINTS // 2


def _readings(panel: Panel) -> dict[str, Any]:
    """What the cursor reads: steps, and the value of each curve there; and where the paper's axis lies."""
    steps = _steps(panel, POINTS)
    series = []
    for own in panel.series:
        at = dict(own.points)
        shown = [_shown(at.get(step), panel.share) for step in steps]
        series.append({"label": own.label, "values": shown})
    axes = {}
    for width, height, size in ((WIDE, _HEIGHT, "wide"), (NARROW, _LOW, "narrow")):
        paper = frame(panel, width, height)
        axes[size] = [round(v, 1) for v in (paper.x.start, paper.x.end, paper.y.end, paper.y.start)]
    marks = [[mark.step, f"{mark.number} {mark.title}"] for mark in panel.marks]
    return {"steps": steps, "last": panel.steps, "series": series, "axes": axes, "marks": marks}


def _steps(panel: Panel, limit: int) -> list[float]:
    """Steps at which anything was measured; of many, those that the curves keep."""
    longest = max((series.points for series in panel.series), key=len)
    steps = {point[0] for point in thinned(longest, limit)}
    steps |= {point[0] for series in panel.series if series.dots for point in series.points}
    return sorted(steps)


def _shown(value: float | None, share: bool) -> str:
    return "" if value is None else scored(value, share)


def _table(panel: Panel) -> Markup:
    steps = _steps(panel, TABLE_ROWS)
    values = [dict(series.points) for series in panel.series]
    rows = [[whole(step), *(_shown(at.get(step), panel.share) for at in values)] for step in steps]
    columns = [Column("step", True), *(Column(series.label, True) for series in panel.series)]
    every = max(len(series.points) for series in panel.series)
    less = f" (of {whole(every)} evaluations, those that show the curve)" if every > len(rows) else ""
    return table(f"{panel.title} by step{less}", columns, rows)


def _json(plain: Any) -> Markup:
    """JSON that no text in it can end the element of."""
    said = json.dumps(plain, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        said = said.replace(sign, code)
    return Markup(said)


def overlay(title: str, lines: Iterable[Series], steps: int, share: bool, name: str) -> Markup:
    """Curves of several runs in one panel."""
    return chart(Panel(title, tuple(lines), share, (), steps), name)
