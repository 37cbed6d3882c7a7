"""Several runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from esper.drawing.amounts import counted, measured, scored, whole
from esper.drawing.curves import Series
from esper.drawing.markup import Markup, join, tag
from esper.report.bounds import cut
from esper.report.elements import Column, Place, section, table
from esper.report.facts import Reached, facts
from esper.report.read import RunData
from esper.report.sections.charts import overlay
from esper.report.sections.headline import progress
from esper.report.timeline import curve, is_share, planned_steps

_OVERLAID = 6  # as many as there are colours to tell apart


def comparison(runs: Sequence[RunData], place: Place) -> Markup:
    """The section."""
    found = [overlaid(runs, measure, place) for measure in ("loss", "accuracy")]
    more = None
    if len(runs) > _OVERLAID:
        more = tag("p", f"The curves are of the first {_OVERLAID} runs.", class_="note")
    return section(place, "comparison", "The runs beside each other", _table(runs, place), *found, more)


def overlaid(runs: Sequence[RunData], measure: str, place: Place) -> Markup | None:
    """Curves of a figure, of several runs."""
    lines = []
    for number, run in enumerate(runs[:_OVERLAID]):
        points = curve(run.events, f"validation_{measure}").points
        if points:
            lines.append(Series(cut(run.name, 40), points, f"es-run-{number}"))
    if not lines:
        return None
    steps = max(planned_steps(run.events) for run in runs[:_OVERLAID])
    share = _is_share(runs[:_OVERLAID], measure)
    return overlay(f"Validation {measure} of the runs", lines, steps, share, place.id(f"over-{measure}"))


def _is_share(runs: Sequence[RunData], measure: str) -> bool:
    """Whether it is one in every run: figures beside each other have one unit."""
    return is_share([event for run in runs for event in (*run.events, *run.control)], measure)


def _table(runs: Sequence[RunData], place: Place) -> Markup:
    rows, share = [], _is_share(runs, "accuracy")
    for number, run in enumerate(runs):
        found = facts(run)
        rows.append(
            [
                tag("a", run.name, href=f"#r{number}"),
                progress(run).removesuffix(" steps"),
                found.part,
                _cell(found.before, share),
                _cell(found.after, share),
                _cell(found.control, share),
                f"{whole(found.arrived)}, {whole(found.stayed)}",
                "" if found.after is None or math.isnan(found.after.parameters) else whole(found.after.parameters),
                "" if math.isnan(found.flops) else counted(found.flops),
                "" if math.isnan(found.seconds) else f"{found.seconds:,.1f}",
            ]
        )
    names = ("before growth", "after", "control", "kernels tried, kept", "parameters", "FLOPs", "seconds")
    columns = [Column("run"), Column("steps", True), Column("scored on"), *(Column(name, True) for name in names)]
    caption = "Scores are accuracy and loss: of the test part, or of validation until a run has ended"
    return table(caption, columns, rows)


def _cell(reached: Reached | None, share: bool) -> Markup | str:
    """Accuracy above loss, so that the table is narrow."""
    if reached is None:
        return ""
    loss = "" if math.isnan(reached.loss) else f"loss {measured(reached.loss)}"
    right = "" if math.isnan(reached.accuracy) else scored(reached.accuracy, share)
    return join([right, tag("br") if right and loss else "", loss])
