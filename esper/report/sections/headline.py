"""What grew, and what it brought."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from esper.drawing.amounts import MINUS, counted, measured, percent, scored, signed, whole
from esper.drawing.markup import Markup, join, tag
from esper.report.elements import Place, section
from esper.report.facts import Facts, Reached, facts
from esper.report.read import RunData
from esper.report.timeline import end_step, last_step, planned_steps, scores


def headline(run: RunData, place: Place) -> Markup:
    """A sentence and the figures behind it."""
    found = facts(run)
    cards = [card for card in (_accuracy(found), _loss(found), _parameters(found), _work(found)) if card is not None]
    note = (
        "Equal steps, not equal arithmetic: a grown network computes more in each step than the control. "
        f"Scores are of the {found.part} part"
        + (", on which nothing was decided." if found.part == "test" else ", on which growth was decided.")
    )
    return section(
        place,
        "headline",
        "What grew, and what it brought",
        _status(run),
        tag("div", *cards, class_="cards") if cards else None,
        tag("p", note, class_="note") if found.after else None,
        lead=sentence(run, found),
    )


def sentence(run: RunData, found: Facts) -> str:
    """The run in a sentence."""
    if not found.arrived:
        grew = "Nothing is known to have grown" if run.missing else "Nothing grew"
    else:
        counts = {"germinated": found.germinated, "came from the library": found.loaded}
        came = ", ".join(f"{_counted(count, 'kernel')} {how}" for how, count in counts.items() if count)
        grew = f"{'At least ' if run.missing else ''}{came} and {found.stayed or 'none'} stayed"
    now, then = found.after, found.before
    if now is None:
        return f"{grew}. No evaluation has been recorded yet."
    measure = _measure(now)
    said = partial(_said, measure=measure, share=found.share)
    # Before growth is worth naming only where something grew.
    was = f", {_change(then, now, measure)} {said(then)} before growth" if then and found.arrived else ""
    beside = f"; without growth it is {said(found.control)}" if found.control else ""
    name = f"{found.part} {measure}"
    return f"{grew}: {name} is {said(now)} at step {whole(now.step)}{was}{beside}."


def _change(then: Reached, now: Reached, measure: str) -> str:
    before, after = getattr(then, measure), getattr(now, measure)
    return "up from" if after > before else "down from" if after < before else "after"


def _measure(reached: Reached) -> str:
    return "loss" if math.isnan(reached.accuracy) else "accuracy"


def _said(reached: Reached | None, measure: str, share: bool) -> str:
    if reached is None:
        return "unknown"
    return measured(reached.loss) if measure == "loss" else scored(reached.accuracy, share)


def _counted(count: int, name: str) -> str:
    return f"{whole(count)} {name}" if count == 1 else f"{whole(count)} {name}s"


def _status(run: RunData) -> Markup | None:
    on = " `esper grow CONFIG --resume` goes on with it." if run.can_resume else ""
    if run.failure:
        said = f"It failed at step {whole(run.failure.step)}: {run.failure.reason or 'no reason was recorded'}.{on}"
        return tag("p", tag("strong", "The run ended with an error. "), said, class_="status", role="note")
    if not run.is_running:
        return None
    planned, stands = planned_steps(run.events), end_step(run.control or run.events)
    which = "The control run is" if run.control else "The run is"
    last = next((event.time for event in reversed((*run.events, *run.control)) if event.time), "")
    when = f"; its last event is of {last}" if last else ""
    return tag(
        "p",
        tag("strong", "Still running, or stopped before its end. "),
        f"{which} at step {whole(stands)} of {whole(planned)}{when}. Not there yet: {', '.join(_not_yet(run))}.",
        f" If it was stopped,{on}" if on else None,
        class_="status",
        role="note",
    )


def _not_yet(run: RunData) -> list[str]:
    """What a run that goes on has not given yet."""
    scored = "end" in scores(run.events)
    there = {
        "the test scores at its end": scored,
        "the network at its end": run.network is not None and run.drawn_at is None,
        "where the work went": run.ledger is not None,
        "the certificate": run.certificate is not None,
    }
    missing = [name for name, found in there.items() if not found]
    return missing + (["the end of the control run"] if run.control or not missing else [])


def _card(title: str, value: str, *lines: Any) -> Markup:
    said = [tag("dd", line, class_="detail") for line in lines if line]
    return tag("dl", tag("dt", title), tag("dd", value, class_="value"), *said, class_="card")


def _accuracy(found: Facts) -> Markup | None:
    now = found.after
    if now is None or math.isnan(now.accuracy):
        return None
    error = "" if math.isnan(now.error) or not found.share else f"± {percent(now.error)} (standard error)"
    return _card(
        f"{found.part.capitalize()} accuracy",
        scored(now.accuracy, found.share),
        error,
        _beside("before growth", found.before if found.arrived else None, now, "accuracy", found.share),
        _beside("control", found.control, now, "accuracy", found.share),
    )


def _loss(found: Facts) -> Markup | None:
    now = found.after
    if now is None or math.isnan(now.loss):
        return None
    return _card(
        f"{found.part.capitalize()} loss",
        measured(now.loss),
        _beside("before growth", found.before if found.arrived else None, now, "loss", False),
        _beside("control", found.control, now, "loss", False),
    )


def _beside(name: str, other: Reached | None, now: Reached, measure: str, share: bool) -> Markup | None:
    """The change from another figure, and that."""
    if other is None or math.isnan(getattr(other, measure)):
        return None
    change = getattr(now, measure) - getattr(other, measure)
    good = change > 0 if measure == "accuracy" else change < 0
    points = f"{MINUS if change < 0 else '+'}{abs(change) * 100:.1f} points" if share else signed(change)
    word = "better" if good else "worse" if change else "the same"
    arrow = tag("span", points, class_="good" if good else "bad" if change else None)
    return join([arrow, f" {word} than {name}, {_said(other, measure, share)}"])


def _parameters(found: Facts) -> Markup | None:
    now, then = found.after, found.control or found.before
    if now is None or math.isnan(now.parameters):
        return None
    was = ""
    if then is not None and not math.isnan(then.parameters) and then.parameters:
        was = f"{now.parameters / then.parameters:.3g} times the host's {whole(then.parameters)}"
    return _card("Parameters", whole(now.parameters), was)


def _work(found: Facts) -> Markup | None:
    if math.isnan(found.flops) and math.isnan(found.host_flops):
        return None
    forward = ""
    if not math.isnan(found.host_flops):
        grown = 0.0 if math.isnan(found.kernel_flops) else found.kernel_flops
        forward = f"forward for one example: {counted(found.host_flops)}, and {counted(grown)} for kernels"
    if math.isnan(found.flops):
        return _card("FLOPs of a forward", counted(found.host_flops), forward)
    return _card("FLOPs of the whole run", counted(found.flops), forward)


def progress(run: RunData) -> str:
    """How far it is."""
    done, planned = last_step(run.events), planned_steps(run.events)
    return f"step {whole(done)} of {whole(planned)}" if run.is_running or run.failure else f"{whole(done)} steps"
