"""The life of each seed."""

from __future__ import annotations

from collections.abc import Sequence

from esper.drawing.amounts import whole
from esper.drawing.lanes import Lane, lanes
from esper.drawing.markup import Markup, join, tag
from esper.drawing.states import STATES, look
from esper.drawing.thin import Point, thinned
from esper.report.bounds import LANES, LEAST, SPANS, TABLE_ROWS, cut
from esper.report.elements import NARROW, WIDE, Column, Place, chip, drawn, folded, section, table
from esper.report.read import RunData
from esper.report.timeline import Life, label, lives, planned_steps

_TALL = 16  # lanes beyond which the drawing scrolls by itself


def seeds(run: RunData, place: Place) -> Markup:
    """The section."""
    found = lives(run.events)
    if not found:
        return section(place, "seeds", "Seeds", lead=_asleep(run, 0) or "Nothing happened to any seed.")
    shown = found[:LANES]
    steps = planned_steps(run.events)
    most = max(LEAST, SPANS // len(shown))
    limits = {WIDE: most, NARROW: most // 2}
    papers = {width: [_lane(life, limits[width], steps / width) for life in shown] for width in limits}
    name = place.id("lanes")
    figure = drawn(
        name,
        lambda width, own: lanes(papers[width], steps, width, name=own),
        tag("figcaption", _legend(shown)),
        folded("The lanes as a table", _table(shown)),
        tall="Lanes of the seeds" if len(shown) > _TALL else "",
    )
    more = f"{whole(len(found) - LANES)} more seeds are not drawn. " if len(found) > LANES else ""
    if any(len(life.spans) > most for life in shown):
        more += f"Of each seed the latest {whole(most)} states are drawn, half as many on narrow screens."
    return section(
        place, "seeds", "Seeds", figure, tag("p", more, class_="note") if more else None, lead=_lead(run, found)
    )


def _lane(life: Life, most: int, pixel: float) -> Lane:
    """A life as it is drawn: at most so many of its latest states, and alpha along with them; a pixel is some steps."""
    spans = life.spans[-most:]
    since = spans[0].start if len(spans) < len(life.spans) else 0
    alpha = [point for point in life.alpha if point[0] >= since]
    points = tuple(thinned(_coarse(alpha, pixel), 4 * most))
    return Lane(cut(label(life.place), 120), spans, points, ", ".join(life.blueprints[-2:]))


def _coarse(points: Sequence[Point], size: float) -> list[Point]:
    """Without points that have others closer than this on both sides."""
    kept: list[Point] = list(points[:1])
    for at in range(1, len(points)):
        last = at + 1 == len(points)
        if last or points[at][0] - kept[-1][0] >= size or points[at + 1][0] - points[at][0] >= size:
            kept.append(points[at])
    return kept


def _lead(run: RunData, found: Sequence[Life]) -> Markup:
    return join(
        [
            "A lane for each seed: its states above, and below them alpha, the weight of its kernel in the layer's "
            "output, from 0 to 1. ",
            _asleep(run, len(found)),
        ]
    )


def _asleep(run: RunData, awake: int) -> str:
    if not run.network:
        return ""
    places = {layer.get("name") for layer in run.network["layers"] if layer.get("kasmina")}
    each = run.network.get("seeds_per_layer")
    rest = len(places) * each - awake if isinstance(each, int) else 0
    if rest <= 0:
        return ""
    if run.is_running:
        return f"{whole(rest)} more seed{' has' if rest == 1 else 's have'} been dormant so far."
    return f"{whole(rest)} more seed{' was' if rest == 1 else 's were'} dormant throughout."


def _legend(found: Sequence[Life]) -> Markup:
    met = {span.state for life in found for span in life.spans}
    items = [tag("li", chip(state), tag("span", f": {look(state).about}")) for state in STATES if state in met]
    return tag("ul", *items, class_="legend")


def _table(found: Sequence[Life]) -> Markup:
    rows = [
        [label(life.place), chip(span.state), whole(span.start), whole(span.end)]
        for life in found
        for span in life.spans
    ]
    limit = 4 * TABLE_ROWS
    columns = [Column("seed"), Column("state"), Column("from step", True), Column("to step", True)]
    less = f" (the first {limit} of {whole(len(rows))})" if len(rows) > limit else ""
    return table(f"States of the seeds{less}", columns, rows[:limit])
