"""docs/performance.md, made from the files of docs/performance alone; never edited by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.results import FOLDER, Measurement, Outcome, load, load_overhead
from benchmarks.speed.workloads import WORKLOADS

_NOTHING = "-"

PAGE = FOLDER.parent / "performance.md"

_HEAD = """# Performance

How long a train step (AdamW, float32) and an inference take, beside others that do the same. `make bench` measures all
of this and writes this page from the files in `docs/performance/`; nothing here is edited by hand. Which operations a
step spends its time in: `python -m benchmarks.speed.profile WORKLOAD`.

All contenders start from the same weights and see the same batch. In each run, a process of its own, they take turns:
four turns of one call that is not timed and three that are. A time is the median of a run's twelve; figures are means
over runs. A contender whose first three losses or first logits differ from eager torch's by more than 0.1 % is marked
wrong and has no time. First calls are those of a train step; what a process imports and sets up at its very first is
not counted.

* *esper*: `esper.wrap`, `apply(train=True)` and optax in one jitted step with donated state, as in the README.
* *eager torch*: the best of both memory formats, and of fused and foreach AdamW, found anew in every run.
* *torch.compile*: the best of both memory formats, forward and loss in one graph, fused AdamW.
* *idiomatic JAX*: written by hand as most of JAX's users write it (`benchmarks/speed/idiomatic/`).
* *hand-tuned JAX*: the same networks of layers written for this processor (`benchmarks/speed/tuned/`).
* *torchax*, *torch2jax*: bridges that trace torch modules into JAX, in an environment of their own
  (`make bench-bridges`); their batch norms' running statistics stay as they are.
"""


def write(folder: Path = FOLDER, page: Path = PAGE) -> Path:
    """Writes the page, of the workloads whose files are there."""
    found = [load(folder / f"{name}.json") for name in WORKLOADS if (folder / f"{name}.json").exists()]
    page.write_text("\n".join(_lines(found, folder)) + "\n")
    return page


def section(found: Measurement) -> Iterator[str]:
    """Everything about one workload."""
    yield f"\n### {found.workload}: {found.about}\n"
    ratio = "their time / esper's"
    heads = ["", "train step, ms", ratio, "inference, ms", ratio, "first call, s", "MiB"]
    yield from _table(heads, (_row(found, name) for name in _names([found])))
    yield ""
    yield from _remarks(found)


def _lines(found: list[Measurement], folder: Path) -> Iterator[str]:
    yield _HEAD
    if not found:
        yield "Nothing is measured yet."
        return
    yield from _machines(found)
    for title, what in (("Train step", "step"), ("Inference", "infer")):
        yield f"\n## {title}: how many times as long as esper the others take\n"
        yield "Means over runs of ratios of medians; above 1, esper is faster.\n"
        yield from _table(["", *_rivals(found), "esper, ms"], _ratio_rows(found, what))
    calls = load_overhead(folder)
    if calls:
        yield "\n## Calls\n"
        both, reading = _spent(calls.microseconds), _spent(calls.reading)
        yield f"A compiled program that is handed {calls.leaves:,} arrays, donated, and gives them back: {both}."
        yield f"One that reads them: {reading}."
    yield from _sections("The networks that esper is tuned on", [m for m in found if m.tuned])
    yield from _sections("Networks that it is not tuned on", [m for m in found if not m.tuned])


def _spent(microseconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {spent:.0f} µs" for name, spent in microseconds.items())


def _machines(found: list[Measurement]) -> Iterator[str]:
    told = {", ".join(f"{name} {value}" for name, value in measurement.machine.items()) for measurement in found}
    yield from (f"Measured on: {machine}." for machine in sorted(told))


def _sections(title: str, found: list[Measurement]) -> Iterator[str]:
    if found:
        yield f"\n## {title}"
        yield (
            "\nRatios are of each run, then their mean. MiB is what the compiled step needs at once (arguments,"
            " results, temporaries) by its compiler; in brackets, by how much a process grows that trains."
        )
        for measurement in found:
            yield from section(measurement)


def _names(found: list[Measurement]) -> list[str]:
    present = {name for measurement in found for run in measurement.runs for name in run}
    return [name for name in CONTENDERS if name in present]


def _rivals(found: list[Measurement]) -> list[str]:
    return [name for name in _names(found) if name != "esper"]


def _ratio_rows(found: list[Measurement], what: str) -> Iterator[list[str]]:
    for measurement in found:
        ratios = [_mean(measurement.ratios(name, what)) for name in _rivals(found)]
        name = measurement.workload if measurement.tuned else f"{measurement.workload} *"
        yield [name, *ratios, _number(measurement.mean("esper", what))]
    for tuned, title in ((True, "geometric mean, tuned on"), (False, "geometric mean, not tuned on (*)")):
        rows = [m for m in found if m.tuned is tuned]
        if len(rows) > 1:
            yield [title, *(_geometric(rows, name, what) for name in _rivals(found)), ""]


def _geometric(rows: list[Measurement], name: str, what: str) -> str:
    found = [statistics.fmean(ratios) for ratios in (m.ratios(name, what) for m in rows) if ratios]
    if not found:
        return _NOTHING
    of = "" if len(found) == len(rows) else f" (of {len(found)})"
    return f"{math.exp(statistics.fmean(map(math.log, found))):.2f}{of}"


def _row(found: Measurement, name: str) -> list[str]:
    outcomes = found.outcomes(name)
    steps, inferences = (_spelt(found.ratios(name, what)) for what in ("step", "infer"))
    return [
        name,
        _number(found.mean(name, "step")),
        "" if name == "esper" else steps,
        _number(found.mean(name, "infer")),
        "" if name == "esper" else inferences,
        _first_call(outcomes),
        _memory(found, name, outcomes),
    ]


def _first_call(outcomes: list[Outcome]) -> str:
    parts = outcomes[0].first_call if outcomes else {}
    means = {part: statistics.fmean(o.first_call.get(part, 0.0) for o in outcomes) for part in parts}
    if len(means) < 2:
        return "".join(f"{seconds:.1f}" for seconds in means.values())
    return f"{sum(means.values()):.1f}: " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in means.items())


def _memory(found: Measurement, name: str, outcomes: list[Outcome]) -> str:
    counted = [outcome.memory for outcome in outcomes if outcome.memory is not None]
    grown = f"({found.resident[name]:.0f})" if name in found.resident else ""
    return " ".join(filter(None, [f"{statistics.fmean(counted):.0f}" if counted else "", grown]))


def _remarks(found: Measurement) -> Iterator[str]:
    for name in _names([found]):
        outcomes = [run[name] for run in found.runs if name in run]
        for remark in dict.fromkeys(o.absent or (o.wrong and f"wrong: {o.wrong}") or o.variant for o in outcomes):
            if remark:
                yield f"- *{name}*: {remark}."


def _spelt(ratios: list[float]) -> str:
    if not ratios:
        return _NOTHING
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"{each}: **{statistics.fmean(ratios):.2f}**"


def _mean(ratios: list[float]) -> str:
    return f"{statistics.fmean(ratios):.2f}" if ratios else _NOTHING


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else _NOTHING


def _table(heads: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
