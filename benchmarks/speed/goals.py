"""What esper is to reach, and whether it does: judged on the means of runs, from the files of results alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.markdown import table
from benchmarks.speed.contenders import HOSTED
from benchmarks.speed.costs import Seeded, Warm
from benchmarks.speed.measure import IN_TORCH
from benchmarks.speed.results import Measurement, Outcome, Run
from benchmarks.speed.seeds import LAYERS, RANK, SEEDS
from benchmarks.speed.tables import spread
from benchmarks.speed.warm import LISTED
from benchmarks.speed.workloads import WORKLOADS

HAND = ("hand-tuned JAX", "idiomatic JAX")
TORCH = ("eager torch", "torch.compile")
DIGITS = 3
"""Decimals, so that what misses a bound is seen to."""
WHAT = {"step": "train step", "infer": "inference"}
TUNED = tuple(name for name, workload in WORKLOADS.items() if workload.tuned)
OTHERS = tuple(name for name in WORKLOADS if name not in TUNED)
_IDIOMATIC = ("resnet18", "resnet18_cifar", "convnext", "vit", "gpt", "lstm")
_TORCH = {"step": {"mlp": 0.8, "gpt": 0.8, "vit": 1.05}}
_TORCH["infer"] = {"mlp": 0.8, "gpt": 0.8, "vit": 0.8, "resnet18": 1.05, "resnet18_cifar": 1.05}


@dataclass(frozen=True)
class Figure:
    """What is measured in one place.

    Attributes:
        place: A workload.
        ratios: One for each run; none where nothing is measured.
        bound: What their mean is to reach.
    """

    place: str
    ratios: list[float]
    bound: float


@dataclass(frozen=True)
class Goal:
    """A bound in several places.

    Attributes:
        title: Of what by what.
        figures: Of each place.
        rises: Whether means are to be above their bounds, not below.
    """

    title: str
    figures: list[Figure]
    rises: bool = False

    def met(self, figure: Figure) -> bool:
        """Whether what is measured there reaches its bound."""
        reached = statistics.fmean(figure.ratios)
        return reached >= figure.bound if self.rises else reached <= figure.bound

    def row(self) -> list[str]:
        """Of the table of goals."""
        found = [figure for figure in self.figures if figure.ratios]
        bounds = {figure.bound for figure in self.figures}
        sign = ">=" if self.rises else "<="
        met = [figure for figure in found if self.met(figure)]
        verdict = "not measured" if not found else "yes" if len(met) == len(found) else f"{len(met)} of {len(found)}"
        if found and len(found) < len(self.figures):
            verdict += f"; {len(self.figures) - len(found)} not measured"
        told = (self._told(figure, f" {sign} {figure.bound:g}" if len(bounds) > 1 else "") for figure in found)
        return [self.title, f"{sign} {bounds.pop():g}" if len(bounds) == 1 else "", "<br>".join(told), verdict]

    def _told(self, figure: Figure, bound: str) -> str:
        told = f"{figure.place} {spread(figure.ratios, DIGITS)}{bound}"
        return told if self.met(figure) else f"**{told}**"


def lines(
    found: Mapping[str, Measurement], seeded: Sequence[Seeded], warm: Sequence[Warm], hosted: Sequence[Measurement]
) -> Iterator[str]:
    """The table of goals."""
    heads = ["ratio", "goal", "mean over runs (lowest-highest); **missed**", "met"]
    yield from table(heads, (goal.row() for goal in (*races(found), *costs(seeded, warm), in_torch(hosted))))


def races(found: Mapping[str, Measurement]) -> Iterator[Goal]:
    """Those that compare contenders."""
    for places, which in ((TUNED, "tuned on"), (OTHERS, "not tuned on")):
        for what, title in WHAT.items():
            figures = [Figure(name, faster(found.get(name), HAND, what), 1.05) for name in places]
            yield Goal(f"{title}: esper / best hand-written JAX, {which}", figures)
    for which, bounds in (
        ("", (0.11, 0.85, 0.37, 0.58, 0.72, 0.85)),
        (" (stretch)", (0.09, 0.65, 0.25, 0.50, 0.62, 0.56)),
    ):
        ratios = (faster(found.get(name), ("idiomatic JAX",), "step") for name in _IDIOMATIC)
        figures = [Figure(*each) for each in zip(_IDIOMATIC, ratios, bounds, strict=True)]
        yield Goal(f"train step: esper / idiomatic JAX{which}", figures)
    bounds = (9, 1.45, 2.6, 1.35, 1.15, 8)
    ratios = (faster(found.get(name), ("torchax",), "step", upside_down=True) for name in _IDIOMATIC)
    figures = [Figure(*each) for each in zip(_IDIOMATIC, ratios, bounds, strict=True)]
    yield Goal("train step: torchax / esper", figures, rises=True)
    for what, title in WHAT.items():
        figures = [Figure(name, faster(found.get(name), TORCH, what), bound) for name, bound in _TORCH[what].items()]
        yield Goal(f"{title}: esper / best torch", figures)
    figures = [Figure(name, faster(found.get(name), ("torchax",), "first"), 0.8) for name in WORKLOADS]
    yield Goal("first call: esper / torchax", figures)
    figures = [Figure(name, memory(found.get(name)), 1.05) for name in WORKLOADS]
    yield Goal("peak memory of the compiled step: esper / best hand-written JAX", figures)


def costs(seeded: Sequence[Seeded], warm: Sequence[Warm]) -> Iterator[Goal]:
    """Those that compare esper with itself."""
    started = {found.workload: found.ratios() for found in warm}
    yield Goal("first call: second process with caches / first", [Figure(n, started.get(n, []), 0.25) for n in LISTED])
    by_name = {found.workload: found for found in seeded}
    for what, title in (
        ("step", "train step"),
        ("compiling", "compile time"),
        ("lowered_bytes", "bytes of lowered text"),
        ("instructions", "compiled instructions"),
    ):
        figures = [
            Figure(name, by_name[name].ratios("dormant", what) if name in by_name else [], 1.01) for name in LAYERS
        ]
        yield Goal(f"{title}: {SEEDS} dormant seeds on every layer / none", figures)
    figures = [Figure(name, by_name[name].overspent() if name in by_name else [], 1.1) for name in LAYERS]
    yield Goal(f"train step with an active seed of rank {RANK}: ratio of times / of FLOPs", figures)


def in_torch(hosted: Sequence[Measurement]) -> Goal:
    """That of a model in a loop of torch's."""
    by_name = {found.workload: found for found in hosted}
    ratios = ((name, by_name[name].ratios(HOSTED, "step") if name in by_name else []) for name in IN_TORCH)
    return Goal("train step: in a loop of torch / in esper's own", [Figure(*each, 1.1) for each in ratios])


def faster(found: Measurement | None, rivals: Sequence[str], what: str, upside_down: bool = False) -> list[float]:
    """Esper's figure by the best rival's, in every run that has both; or the rival's by esper's."""

    def ratio(ours: Outcome, theirs: list[Outcome]) -> float:
        best = min(figures) if (figures := _finite(theirs, lambda outcome: getattr(outcome, what))) else math.nan
        return best / getattr(ours, what) if upside_down else getattr(ours, what) / best

    return _by_run(found, rivals, ratio)


def memory(found: Measurement | None) -> list[float]:
    """What esper's compiled step needs at once by what that of the faster hand-written one does."""

    def ratio(ours: Outcome, theirs: list[Outcome]) -> float:
        rival = min(theirs, key=lambda outcome: outcome.step)
        return ours.memory / rival.memory if ours.memory and rival.memory else math.nan

    return _by_run(found, HAND, ratio)


def _by_run(
    found: Measurement | None, rivals: Sequence[str], ratio: Callable[[Outcome, list[Outcome]], float]
) -> list[float]:
    pairs = [_entered(run, rivals) for run in (found.runs if found else ())]
    ratios = (ratio(ours, theirs) for ours, theirs in pairs if ours and theirs)
    return [value for value in ratios if math.isfinite(value)]


def _entered(run: Run, rivals: Sequence[str]) -> tuple[Outcome | None, list[Outcome]]:
    counting = {name: outcome for name, outcome in run.items() if outcome.counts}
    return counting.get("esper"), [counting[name] for name in rivals if name in counting]


def _finite(outcomes: list[Outcome], of: Callable[[Outcome], float]) -> list[float]:
    return [value for value in map(of, outcomes) if math.isfinite(value)]
