"""B1, the right organ: a race of blueprints on signals, for which an MLP is the wrong network."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.evidence.arms import Outcome, Pairs, Spec, Task, arm
from benchmarks.evidence.grown import Growing, grown, winner
from benchmarks.evidence.hosts import Graft, Host, Mlp, born, count
from benchmarks.evidence.learning import RATES, Schooling
from benchmarks.evidence.results import Arm, Benchmark, Claim, Run, spelt
from benchmarks.evidence.signals import unseen
from benchmarks.evidence.static import step_flops, trained
from esper.configs import TamiyoSettings
from esper.growth.controls import Random
from esper.growth.tamiyo import Tamiyo

STEPS, WIDTH = 3000, 16
HOST = Host(Mlp((40, 32, 32, 10)), "0")
CANDIDATES = ["mlp", "conv1d", "low_rank"]
SCHOOLING = Schooling(STEPS)
GROWTH = Growing(
    TamiyoSettings(
        trigger="always",
        blueprints={"0": CANDIDATES},
        race=len(CANDIDATES),
        rank=WIDTH,
        train_steps=100,
        blend_steps=50,
        hold_steps=50,
        max_kernels=1,
        swap=0,
    ),
    every=50,
)
NOTES = (
    "This is the second design. The first, with a host 40-100-100-10 and its race from step 100 to 200, was run in "
    "full and missed: the conv was kept by 4 of 10 keys, esper had 72.2 ± 9.9 % beside 65.3 % of the host, 72.8 % of "
    "the MLP of equal parameters and 90.1 % of conv from the start. A host of that size has learned the signals by "
    "heart when the kernel joins it, after which no kernel gains on held-out signals; rates that are high enough for "
    "the conv make a race of so few steps noisy. The smaller host and the earlier race were chosen after that, and run "
    "on keys 0 to 9 and the published test signals: the conv was kept by 9 of 10 keys, esper had 86.0 ± 9.2 % beside "
    "59.2 %, 68.1 % and 90.7 %, at 1.03 times the FLOPs of conv from the start. What is shown is the confirmation of "
    "that design, unchanged, on ten keys and a test split that nothing had been compared on.",
)
SMALL, CONV, ESPER, SAME = "small host", "conv from the start", "esper", "MLP of equal parameters"


def run() -> Benchmark:
    """All arms and claims."""
    task = Task(unseen(), RATES, tuning=(0, 1), keys=tuple(range(10, 20)))
    return benchmark(tuple(arm(spec, task) for spec in specs(task)), task)


def specs(task: Task) -> list[Spec]:
    """All arms."""
    conv = (Graft("conv1d", (("width", WIDTH),)),)
    size = count(born(HOST, 0, conv))
    mlp = (Graft("mlp", (("width", _fitting(size, "mlp", "width")),)),)
    adapters = tuple(Graft("low_rank", (("rank", 32),)) for _ in range(_fitting(size, "low_rank", "rank") // 32))
    per_step = {grafts: step_flops(born(HOST, 0, grafts), SCHOOLING, task.data.train) for grafts in (conv, mlp)}
    equal = Schooling(_even(STEPS * per_step[conv] / per_step[mlp]))

    def static(name: str, about: str, grafts: tuple[Graft, ...], schooling: Schooling = SCHOOLING) -> Spec:
        def runner(pairs: Pairs) -> list[Outcome]:
            models = [born(HOST, key, grafts) for key, _ in pairs]
            return trained(models, [rate for _, rate in pairs], [key for key, _ in pairs], schooling, task)

        return Spec(name, about, schooling.steps, runner)

    def growing(name: str, about: str, policy: Callable[[int], Tamiyo | Random]) -> Spec:
        def runner(pairs: Pairs) -> list[Outcome]:
            return [grown(born(HOST, k), k, rate, SCHOOLING, GROWTH, policy(k), task) for k, rate in pairs]

        return Spec(name, about, STEPS, runner)

    return [
        static(SMALL, "The host alone, an MLP 40-32-32-10.", ()),
        static(SAME, "The host with an MLP beside its first layer, of as many parameters as the conv.", mlp),
        static("that MLP, equal FLOPs", "The same for as many FLOPs as conv from the start takes.", mlp, equal),
        static("low-rank adapters", "The host with low-rank kernels of as many parameters in all.", adapters),
        static(CONV, "The host with the conv1d kernel, the network that esper ends with, from scratch.", conv),
        growing("random growth", "One of the three blueprints, drawn, at a time that is drawn.", partial(_drawn, 1)),
        growing(ESPER, "Tamiyo races the three blueprints and nothing.", lambda key: Tamiyo(GROWTH.settings)),
    ]


def benchmark(arms: tuple[Arm, ...], task: Task) -> Benchmark:
    """What came out."""
    found = {one.name: one for one in arms}
    return Benchmark(
        name="B1",
        title="The right organ",
        setup=(
            "mnist1d: the 4,000 training signals as published; 1,000 each for validation and test, drawn anew.",
            f"Host: an MLP 40-32-32-10. Candidates beside its first layer: {', '.join(CANDIDATES)} of width or rank "
            f"{WIDTH}, and nothing.",
            f"{STEPS} steps of 100 examples, AdamW, cosine to 0; learning rates {_listed(task.rates)} for every arm, "
            f"chosen by validation accuracy on keys {_listed(task.tuning)}; results are of keys 10 to 19.",
            "esper: evaluation every 50 steps; growth is allowed from the first evaluation on; 100 steps of training "
            "in a race, 50 each of blending and trial.",
        ),
        metric="accuracy, %",
        higher_is_better=True,
        claims=tuple(_claims(found)),
        arms=arms,
        notes=NOTES,
    )


def _drawn(kernels: int, key: int) -> Random:
    return Random(GROWTH.settings, kernels, key)


def _claims(found: dict[str, Arm]) -> list[Claim]:
    esper, conv = found[ESPER], found[CONV]
    picks = [winner(run.events) for run in esper.runs]
    first = [_germinated(run) / STEPS for run in esper.runs]
    right = picks.count("conv1d")
    others = [f"key {run.key} keeps {pick or 'nothing'}" for run, pick in zip(esper.runs, picks, strict=True)]
    others = [told for told, pick in zip(others, picks, strict=True) if pick != "conv1d"]
    ratios = [run.flops / conv.mean("flops") for run in esper.runs]
    gaps = [ours.test - theirs.test for ours, theirs in zip(esper.runs, conv.runs, strict=True)]
    theirs = [gap for gap, pick in zip(gaps, picks, strict=True) if pick == "conv1d"]
    made = [
        Claim("The policy picks the conv", ">= 9 of 10 keys", f"{right} of {len(picks)}", right >= 9, _told(others)),
        Claim(
            "Germinated early",
            "within the first 10 % of the steps",
            f"at {100 * max(first):.0f} % at the latest",
            max(first) <= 0.1,
        ),
    ]
    for name in (SMALL, SAME):
        gains = [ours.test - theirs.test for ours, theirs in zip(esper.runs, found[name].runs, strict=True)]
        made.append(Claim(f"Over {name}", ">= +15 points", f"{spelt(gains)} points", statistics.fmean(gains) >= 15))
    made += [
        Claim(
            "Beside conv from the start",
            "within 3 points",
            f"{spelt(gaps)} points",
            statistics.fmean(gaps) >= -3,
            _behind(others, theirs, {run.key: gap for run, gap in zip(esper.runs, gaps, strict=True)}),
        ),
        Claim(
            "FLOPs beside conv from the start, culled kernels and evaluations included",
            "<= 1.15 times",
            f"{spelt(ratios, 3)} times, at most {max(ratios):.3f}",
            max(ratios) <= 1.15,
            _raced_again(esper, ratios),
        ),
    ]
    return made


def _behind(others: list[str], theirs: list[float], gaps: dict[int, float]) -> str:
    if others and len(theirs) > 1:
        return f"{_told(others)} Over the keys that keep the conv: {spelt(theirs)} points."
    worst = min(gaps, key=lambda key: gaps[key])
    return f"Median {statistics.median(gaps.values()):.1f} points; key {worst} is furthest behind, {gaps[worst]:.1f}."


def _raced_again(esper: Arm, ratios: list[float]) -> str:
    """Which keys took more, and why: a race that no candidate wins is held again, with new kernels."""
    races = {run.key: len({e.step for e in run.events if e.what == "germinate"}) for run in esper.runs}
    above = [run.key for run, ratio in zip(esper.runs, ratios, strict=True) if ratio > 1.15]
    held = ", ".join(f"key {key} held {races[key]} races, no candidate having won the earlier ones" for key in above)
    return f"{len(ratios) - len(above)} of {len(ratios)} keys within; {held}." if above else ""


def _told(parts: list[str]) -> str:
    return f"{'; '.join(parts).capitalize()}." if parts else ""


def _germinated(run: Run) -> int:
    return min((event.step for event in run.events if event.what == "germinate"), default=STEPS)


def _fitting(size: int, blueprint: str, option: str) -> int:
    """The option at which host and kernel have `size` parameters."""
    smaller, larger = (count(born(HOST, 0, (Graft(blueprint, ((option, at),)),))) for at in (8, 16))
    return round(8 + (size - smaller) / ((larger - smaller) / 8))


def _even(steps: float) -> int:
    return round(steps / 20) * 20


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
