"""docs/performance.md, made from the files of docs/performance, and of what profiles showed (`causes.md`)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.speed import goals
from benchmarks.speed.contenders import CONTENDERS, HOSTED
from benchmarks.speed.costs import Overhead, Seeded, Warm, load_hosted, load_overhead, load_seeded, load_warm
from benchmarks.speed.results import FOLDER, Measurement, Outcome, load
from benchmarks.speed.tables import NOTHING, mean, number, spelt, spread
from benchmarks.speed.workloads import WORKLOADS

PAGE = FOLDER.parent / "performance.md"
CAUSES = Path(__file__).with_name("causes.md")

_HEAD = """# Performance

How long a train step (AdamW, float32) and an inference take, beside others that do the same. `make bench` measures all
of this and writes this page from the files in `docs/performance/`; but for the causes of what is missed, which are in
`benchmarks/speed/causes.md`, nothing here is edited by hand. Which operations a step spends its time in:
`python -m benchmarks.speed.profile WORKLOAD`.

All contenders start from the same weights and see the same batch. In each run, a process of its own, they take turns:
four turns of one call that is not timed and three that are. A time is the median of a run's twelve; figures are means
over runs. The processes keep the memory they free (`esper.allocation.keep_freed_memory`, as in the command `esper`):
with glibc's defaults each step of a large network fetches it from the system again, which cost esper 2 to 29 % of a
train step in six of these networks. A contender whose first three losses or first logits differ from eager torch's by
more than 0.1 % is marked wrong and has no time. First calls are those of a train step; what a process imports and sets
up at its very first is not counted.

* *esper*: `esper.wrap` (four dormant seeds on every linear and convolution layer), `apply(train=True)`, the
  cross-entropy of `esper.fit` and optax in one jitted step with donated state.
* *eager torch*: the best of both memory formats, and of fused and foreach AdamW, found anew in every run.
* *torch.compile*: the best of both memory formats, forward and loss in one graph, fused AdamW.
* *idiomatic JAX*: written by hand as most of JAX's users write it (`benchmarks/speed/idiomatic/`), optax's
  cross-entropy.
* *hand-tuned JAX*: the same networks of layers written for this processor, gradients in closed form
  (`benchmarks/speed/tuned/`).
* *torchax*, *torch2jax*: bridges that trace torch modules into JAX, in an environment of their own
  (`make bench-bridges`), optax's cross-entropy; their batch norms' running statistics stay as they are.
"""


def write(folder: Path = FOLDER, page: Path = PAGE) -> Path:
    """Writes the page, of what has files there."""
    found = [load(folder / f"{name}.json") for name in WORKLOADS if (folder / f"{name}.json").exists()]
    page.write_text("\n".join(_lines(found, folder)) + "\n")
    return page


def section(found: Measurement) -> Iterator[str]:
    """Everything about one workload."""
    yield f"\n### {found.workload}: {found.about}\n"
    ratio = "their time / esper's"
    heads = ["", "train step, ms", ratio, "inference, ms", ratio, "first call, s", "MiB"]
    yield from table(heads, (_row(found, name) for name in _names([found])))
    yield ""
    yield from _remarks(found)


def _lines(found: list[Measurement], folder: Path) -> Iterator[str]:
    seeded, warm, calls, hosted = load_seeded(folder), load_warm(folder), load_overhead(folder), load_hosted(folder)
    yield _HEAD
    if not (found or seeded or warm or calls or hosted):
        yield "Nothing is measured yet."
        return
    yield from _machines([*found, *seeded, *warm, *hosted])
    if found:
        yield "\n## How many times as long as esper the others take\n"
        yield "Train step / inference: means over runs of ratios of medians; above 1, esper is faster.\n"
        yield from table(["", "esper, ms", *_rivals(found)], _summary(found))
    yield "\n## Goals\n"
    yield from goals.lines({m.workload: m for m in found}, seeded, warm, hosted)
    yield "\n## Why goals are missed\n"
    yield CAUSES.read_text().rstrip()
    yield from _behind(found)
    yield from _seeds(seeded)
    yield from _hosted(hosted)
    yield from _starts(warm)
    yield from _calls(calls)
    yield from _sections("The networks that esper is tuned on", [m for m in found if m.tuned])
    yield from _sections("Networks that it is not tuned on", [m for m in found if not m.tuned])


def _behind(found: list[Measurement]) -> Iterator[str]:
    """Where torch is faster, and by how much."""
    rows = [row for measurement in found for what in goals.WHAT for row in _deficit(measurement, what)]
    if rows:
        yield "\n## What it would take to be as fast as torch\n"
        yield from table(["", "esper, ms", "best torch, ms", "esper / best torch", "esper must save"], rows)


def _deficit(found: Measurement, what: str) -> Iterator[list[str]]:
    ratios = goals.faster(found, goals.TORCH, what)
    if ratios and statistics.fmean(ratios) > 1:
        ratio, ours = statistics.fmean(ratios), found.mean("esper", what)
        saved = f"{ours * (1 - 1 / ratio):.2f} ms, {100 * (1 - 1 / ratio):.0f} %"
        yield [f"{found.workload}, {goals.WHAT[what]}", number(ours), number(ours / ratio), spread(ratios), saved]


def _seeds(seeded: Sequence[Seeded]) -> Iterator[str]:
    if not seeded:
        return
    yield "\n## What seeds cost\n"
    yield (
        "A train step without seeds (`target_layers=[]`), with dormant ones on every linear and convolution layer, and"
        " with one of these active, host and kernel both trained. Ratios to the step without: means over runs"
        " (lowest-highest)."
    )
    yield ""
    names = {
        "step": "time",
        "compiling": "compile time",
        "lowered_bytes": "lowered text",
        "instructions": "instructions",
        "flops": "FLOPs",
    }
    rows = (
        [f"{found.workload}, {which}", *(spread(found.ratios(which, what), 3) for what in names)]
        for found in seeded
        for which in ("dormant", "active")
    )
    yield from table(["", *names.values()], rows)
    yield "\nThe active seed is beside: " + ", ".join(f"`{found.layer}` of {found.workload}" for found in seeded) + "."


def _hosted(hosted: Sequence[Measurement]) -> Iterator[str]:
    if not hosted:
        return
    yield "\n## In a loop of torch's\n"
    yield (
        "`esper.torch_module` with torch's cross-entropy and fused AdamW, beside esper's own step and the eager module"
        " in the same loop. Ratios to esper's own: means over runs (lowest-highest).\n"
    )
    rivals = (HOSTED, "eager torch")
    rows = (
        [m.workload, number(m.mean("esper", "step")), *(spread(m.ratios(who, "step")) for who in rivals)]
        for m in hosted
    )
    yield from table(["", "esper's train step, ms", *rivals], rows)


def _starts(warm: Sequence[Warm]) -> Iterator[str]:
    if not warm:
        return
    yield "\n## First calls of the next process\n"
    yield "The caches that the command `esper` keeps: captured Programs, and JAX's compiled ones.\n"
    rows = ([w.workload, _parts(w.parts(0)), _parts(w.parts(1)), spread(w.ratios())] for w in warm)
    yield from table(["", "empty caches, s", "next process, s", "ratio"], rows)


def _calls(calls: Overhead | None) -> Iterator[str]:
    if calls:
        yield "\n## Calls\n"
        both, reading = _spent(calls.microseconds), _spent(calls.reading)
        yield f"A compiled program that is handed {calls.leaves:,} arrays, donated, and gives them back: {both}."
        yield f"One that reads them: {reading}."


def _spent(microseconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {spent:.0f} µs" for name, spent in microseconds.items())


def _machines(found: Sequence[Measurement | Seeded | Warm]) -> Iterator[str]:
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


def _summary(found: list[Measurement]) -> Iterator[list[str]]:
    for measurement in found:
        ours = " / ".join(number(measurement.mean("esper", what)) for what in goals.WHAT)
        theirs = [_pair(mean(measurement.ratios(name, what)) for what in goals.WHAT) for name in _rivals(found)]
        yield [measurement.workload if measurement.tuned else f"{measurement.workload} *", ours, *theirs]
    for tuned, title in ((True, "geometric mean, tuned on"), (False, "geometric mean, not tuned on (*)")):
        rows = [m for m in found if m.tuned is tuned]
        if len(rows) > 1:
            yield [title, "", *(_pair(_geometric(rows, name, what) for what in goals.WHAT) for name in _rivals(found))]


def _pair(figures: Iterable[str]) -> str:
    told = list(figures)
    return NOTHING if set(told) == {NOTHING} else " / ".join(told)


def _geometric(rows: list[Measurement], name: str, what: str) -> str:
    found = [statistics.fmean(ratios) for ratios in (m.ratios(name, what) for m in rows) if ratios]
    if not found:
        return NOTHING
    of = "" if len(found) == len(rows) else f" (of {len(found)})"
    return f"{math.exp(statistics.fmean(map(math.log, found))):.2f}{of}"


def _row(found: Measurement, name: str) -> list[str]:
    outcomes = found.outcomes(name)
    steps, inferences = (spelt(found.ratios(name, what)) for what in ("step", "infer"))
    return [
        name,
        number(found.mean(name, "step")),
        "" if name == "esper" else steps,
        number(found.mean(name, "infer")),
        "" if name == "esper" else inferences,
        _first_call(outcomes),
        _memory(found, name, outcomes),
    ]


def _first_call(outcomes: list[Outcome]) -> str:
    names = outcomes[0].first_call if outcomes else {}
    return _parts({name: statistics.fmean(o.first_call.get(name, 0.0) for o in outcomes) for name in names})


def _parts(means: dict[str, float]) -> str:
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
