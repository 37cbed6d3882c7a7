"""Runs for a terminal: what each is doing, at a glance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from esper.telemetry.events import Event
from esper.telemetry.state import Curve, Key, RunState, latest

_BARS, _PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_WIDTH = 40  # of a curve, in characters
_STYLES = {"running": "cyan", "ended": "green", "failed": "red", "waiting": "dim"}


def board(states: Mapping[Key, RunState], *, now: datetime | None = None, unicode: bool = True) -> RenderableType:
    """All runs, one below the other.

    Args:
        states: The runs.
        now: What ages are counted from; None: the time it is.
        unicode: Whether curves may be drawn with blocks.
    """
    now = now or datetime.now(UTC)
    bars = _BARS if unicode else _PLAIN
    lasts = {run_id: run for run_id, run in states}  # whose panel has what is true of all runs of the id
    panels = [
        _panel(*key, state, now, bars, _warnings(state) if lasts[key[0]] == key[1] else [])
        for key, state in states.items()
    ]
    return Group(*panels) if panels else Text("nothing has happened yet", style="dim")


def sentence(event: Event) -> str:
    """An event in one line."""
    place = "" if event.layer is None else f" {event.layer or '(root)'}[{event.seed}]"
    told = [event.reason] if event.reason else []
    told += [f"{name} {_number(value)}" for name, value in event.figures.items()]
    said = f"{event.run_id} {event.run} step {event.step}: {event.event}{place}: {', '.join(told)}"
    return printable(said.rstrip(": "))


def _panel(run_id: str, run: str, state: RunState, now: datetime, bars: str, warnings: list[str]) -> Panel:
    parts: list[RenderableType] = [_head(state, now)]
    if state.curves:
        parts.append(_curves(state, bars))
    if state.seeds:
        parts.append(_seeds(state))
    parts += [_decision(event) for event in state.decisions[-4:]]
    parts += [_warning(text) for text in warnings]
    return Panel(
        Group(*parts), title=Text(printable(f"{run_id}  {run}")), title_align="left", border_style=_STYLES[state.status]
    )


def _head(state: RunState, now: datetime) -> Text:
    text = Text()
    text.append(state.status, style=_STYLES[state.status])
    text.append(f"  step {state.step:,}")
    if state.last is not None:
        text.append(f"  last event {_age((now - state.last).total_seconds())} ago", style="dim")
    text.append(f"  {state.compiles} compiles in {state.compile_seconds:.1f} s", style="dim")
    if state.rollbacks:
        text.append(f"  {state.rollbacks} rollbacks", style="yellow")
    if state.why:
        text.append(f"  {printable(state.why)}")
    return text


def _curves(state: RunState, bars: str) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, curve in state.curves.items():
        table.add_row(Text(printable(name)), Text(f"{latest(curve):.4g}"), Text(_drawn(curve, bars), style="cyan"))
    return table


def _seeds(state: RunState) -> Table:
    table = Table.grid(padding=(0, 2))
    for (layer, seed), known in state.seeds.items():
        alpha = "alpha moving" if known.alpha is None else f"alpha {known.alpha:.2f}"
        place = f"{layer or '(root)'}[{seed}]"
        told = place, known.state, alpha, f"since step {known.since:,}", known.blueprint
        table.add_row(*(Text(printable(text)) for text in told))
    return table


def _decision(event: Event) -> Text:
    place = "" if event.layer is None else f" {event.layer or '(root)'}[{event.seed}]"
    said = printable(f"step {event.step:,}: {event.event}{place}: {event.reason}")
    return Text(said, style="dim", overflow="ellipsis", no_wrap=True)


def _warnings(state: RunState) -> list[str]:
    found = [f"{sink} takes no events: {why}" for sink, why in state.down.items()]
    found += [f"{sink} missed {lost:,} events" for sink, lost in state.dropped.items()]
    return found + ([f"{state.missed:,} events did not come here"] if state.missed else [])


def _warning(text: str) -> Text:
    return Text(printable(text), style="yellow")


def printable(text: str) -> str:
    """The text without what would steer a terminal: anybody may have written an event."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _drawn(curve: Curve, bars: str) -> str:
    """The curve, its lowest value the lowest bar; a gap where it is not finite."""
    shown = min(_WIDTH, len(curve))
    values = [curve[at * (len(curve) - 1) // max(shown - 1, 1)][1] for at in range(shown)]
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite) / 2, max(finite) / 2) if finite else (0.0, 0.0)  # halves, whose difference is finite
    top, span = len(bars) - 1, high - low
    return "".join(
        " " if not math.isfinite(value) else bars[round((value / 2 - low) / span * top) if span else 0]
        for value in values
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _age(seconds: float) -> str:
    """A time span in its largest unit; clocks of two machines may differ, so it may be negative."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
