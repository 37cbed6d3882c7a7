"""The seeds of a run as its events tell them, and what they were before: a run may go back there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from esper.lifecycle import LEADS_TO, LEGAL
from esper.lifecycle import SeedLifecycleState as S
from esper.telemetry.events import Scalar, Seed

_NUMBER = re.compile(r"[0-9]{1,18}\]")
_KEPT = 32  # changes of a seed that are remembered
_FROM_DORMANT = ("germinate", "load", "declined", "loading")  # events that only a seed without a kernel can have
_ALPHA = {S.GRAFTING: None, S.ACTIVE: 1.0, S.FOSSILIZED: 1.0}  # where no evaluation has said more

WITHIN, MEASURED, DECIDED = range(3)
"""What comes after what at a step. The training that leads to it; the governor keeps a sound state there. Changes of
structure that are due, and the evaluation; a checkpoint is kept there. What is decided then."""

Place = tuple[str, int]
"""A layer, and which of its seeds."""


class Moment(NamedTuple):
    """A step, and how far things had come there."""

    step: int
    order: int


@dataclass(frozen=True)
class SeedState:
    """A seed as its events tell it.

    Attributes:
        state: Name of its lifecycle's state, in lower case.
        since: Step at which it was entered.
        alpha: How far its kernel is blended in, of one that is GRAFTING by the last evaluation; None: that is to come.
        blueprint: What its kernel was made by.
    """

    state: str
    since: int
    alpha: float | None = 0.0
    blueprint: str = ""


Journal = tuple[tuple[Moment, SeedState], ...]
"""What a seed was, from when on: never empty, the last is what it is."""

Journals = Mapping[Place, Journal]


def told(journals: Journals, event: Seed, at: Moment) -> Journals:
    """The journals after something happened to a seed."""
    place = event.layer, event.seed
    journal = journals.get(place, ())
    if not journal and event.event in _FROM_DORMANT:
        journal = ((Moment(0, WITHIN), SeedState("dormant", 0)),)
    known = journal[-1][1] if journal else SeedState("dormant", event.step)
    return {**journals, place: _longer(journal, at, _after(known, event))}


def evaluated(journals: Journals, figures: Mapping[str, Scalar | list[Scalar]], step: int) -> Journals:
    """The journals after an evaluation, which alone tells what happened within steps: how far alpha is, who failed."""
    found = dict(journals)
    for name, value in figures.items():
        kind, _, label = name.partition(" ")
        layer, bracket, seed = label.rpartition("[")
        if not bracket or not _NUMBER.fullmatch(seed) or not isinstance(value, int | float):
            continue
        place = layer, int(seed[:-1])
        if kind == "failed" and 0 <= value <= step:
            found[place] = _failed(found.get(place, ()), int(value))
        elif kind == "alpha" and (journal := found.get(place)) and journal[-1][1].state == "grafting":
            found[place] = _longer(journal, Moment(step, MEASURED), replace(journal[-1][1], alpha=float(value)))
    return found


def _failed(journal: Journal, since: int) -> Journal:
    known = journal[-1][1] if journal else SeedState("dormant", 0)
    if (known.state, known.since) == ("error_recovery", since):
        return journal
    return _longer(journal, Moment(since, WITHIN), replace(known, state="error_recovery", since=since, alpha=0.0))


def until(journals: Journals, moment: Moment) -> dict[Place, Journal]:
    """The journals as they were then; seeds of which nothing was known are not in them."""
    cut = {place: tuple(each for each in journal if each[0] <= moment) for place, journal in journals.items()}
    return {place: journal for place, journal in cut.items() if journal}


def put_back(journals: Journals, step: int, blamed: Collection[str]) -> Journals:
    """The journals after the run went back to where it was sound.

    What was being prepared is withdrawn, and kernels that are blamed and were there already are culled.

    Args:
        journals: Until the run failed.
        step: At which it was sound.
        blamed: Seeds as layer[seed], the root's layer as (root).
    """
    found = until(journals, Moment(step, WITHIN))
    for (layer, seed), journal in found.items():
        known, to = journal[-1][1], None
        if known.state == "loading":
            to = SeedState("dormant", step)
        elif f"{layer or '(root)'}[{seed}]" in blamed and S.CULLED in LEGAL[S[known.state.upper()]]:
            to = replace(known, state="culled", since=step, alpha=0.0)
        if to is not None:
            found[layer, seed] = _longer(journal, Moment(step, DECIDED), to)
    return found


def _longer(journal: Journal, at: Moment, state: SeedState) -> Journal:
    at = max(at, journal[-1][0]) if journal else at
    return (*journal, (at, state))[-_KEPT:]


def _after(known: SeedState, event: Seed) -> SeedState:
    if event.event == "alpha":
        alpha = event.figures.get("alpha")
        return replace(known, alpha=float(alpha)) if isinstance(alpha, int | float) else known
    state, blueprint, since = LEADS_TO[event.event], known.blueprint, event.step
    if event.event in ("germinate", "load"):
        blueprint = str(event.figures.get("blueprint", ""))
    elif event.event in ("declined", "remove"):
        blueprint = ""
    alpha = _ALPHA.get(state, 0.0)
    if state in (S.ACTIVE, S.FOSSILIZED) and known.state in ("grafting", "active") and known.alpha is not None:
        alpha = known.alpha
    if event.event == "remove" and known.state == "culled":  # its arrays went later
        since = known.since
    return SeedState(state.name.lower(), since, alpha, blueprint)
