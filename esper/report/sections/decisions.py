"""What was decided, and why."""

from __future__ import annotations

from collections.abc import Sequence

from esper.drawing.amounts import whole
from esper.drawing.markup import Markup, tag
from esper.report.bounds import DECISIONS, cut
from esper.report.elements import Column, Place, chip, section, table
from esper.report.read import Event, RunData
from esper.report.timeline import LOOKS, PLAIN, label, thrown_away

_COLUMNS = (Column("step", True), Column("seed"), Column("decision"), Column("reason"))


def decisions(run: RunData, place: Place) -> Markup:
    """The section."""
    undone = thrown_away(run.events)
    taken = [(event, at in undone) for at, event in enumerate(run.events) if event.event not in PLAIN]
    if not taken:
        return section(place, "decisions", "Decisions", lead="Nothing has been decided.")
    shown = taken if len(taken) <= DECISIONS else taken[: DECISIONS // 2] + taken[-DECISIONS // 2 :]
    less = f"The first and last {whole(DECISIONS // 2)} of {whole(len(taken))}; history.jsonl has all of them. "
    body = [_row(event, gone) for event, gone in shown]
    marks = [{"data_event": event.event, "class_": "undone" if gone else None} for event, gone in shown]
    return section(
        place,
        "decisions",
        "Decisions",
        _filter(shown, place),
        table("Decisions, in order", _COLUMNS, body, attributes=marks, seen=False, stacked=True),
        lead=f"{less if len(shown) < len(taken) else ''}Every decision has its reason, with the figures it rests on.",
    )


def _row(event: Event, gone: bool) -> list[object]:
    made = f" {event.figures['blueprint']}" if event.event == "germinate" and "blueprint" in event.figures else ""
    said = cut(f"{event.event.replace('_', ' ')}{made}", 80)
    note = tag("em", " Undone by a later rollback.") if gone else None
    where = label(event.place) if event.place else ""
    state = LOOKS.get(event.event)
    shown = chip(state, said) if state else tag("span", said, class_="chip")
    return [whole(event.step), where, shown, tag("span", event.reason, note)]


def _filter(shown: Sequence[tuple[Event, bool]], place: Place) -> Markup:
    """Controls that need the script, which takes `hidden` away."""
    kinds = list(dict.fromkeys(event.event for event, _ in shown))
    name = place.id("filter")
    options = [tag("option", "all", value=""), *(tag("option", kind.replace("_", " "), value=kind) for kind in kinds)]
    return tag(
        "div",
        tag("label", "Decision ", tag("select", *options, id=f"{name}-kind", data_kind=True)),
        tag("label", "Containing ", tag("input", type="search", id=f"{name}-text", data_text=True)),
        tag("output", id=f"{name}-count", role="status"),
        class_="filter",
        hidden=True,
        role="search",
        aria_label="Filter the decisions",
    )
