"""B4, width to target: a hidden layer of 32 that shall do what one of 128 does, for less."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

from benchmarks.evidence.arms import Outcome, Pairs, Runner, Spec, Task, arm
from benchmarks.evidence.grown import Growing, grown, winner
from benchmarks.evidence.hosts import born, count
from benchmarks.evidence.learning import RATES, Schooling
from benchmarks.evidence.racing import BIG, HOST, LARGE, SMALL, WIDEN, adapters, conv, listed, planned, static
from benchmarks.evidence.results import Arm, Benchmark, Claim, spelt
from benchmarks.evidence.signals import plentiful, published
from benchmarks.evidence.static import step_flops
from esper.configs import TamiyoSettings
from esper.growth.controls import Random
from esper.growth.tamiyo import Tamiyo

STEPS, BUDGET, EVERY = 4000, 0.75, 200
GROWN_STEPS, WIDENED_STEPS = 3200, 2200
CONV = conv(4)
SETTINGS = TamiyoSettings(
    trigger="always",
    blueprints={"Sequential": ["widen", "conv1d"]},
    race=2,
    train_steps=200,
    blend_steps=100,
    hold_steps=100,
    max_kernels=1,
    swap=0,
)
SMALL_ARM, BIG_ARM, EQUAL = f"small host ({SMALL})", f"big ({BIG})", "big, 75 % of the FLOPs"
ESPER, WIDTH = "esper", "esper, width alone"


def run() -> Benchmark:
    """All arms and claims, and the control on the published data."""
    task = Task(plentiful(), RATES, tuning=(0, 1), keys=tuple(range(5)))
    arms = [arm(spec, task) for spec in specs(task)]
    print("  the 4k set", flush=True)
    less = replace(task, data=published())
    return benchmark(arms, [elsewhere(arm(spec, less)) for spec in control_specs(less)], task)


def elsewhere(made: Arm) -> Arm:
    """The arm as one of the control."""
    return replace(made, name=f"4k: {made.name}")


def benchmark(arms: list[Arm], control: list[Arm], task: Task) -> Benchmark:
    """What came out."""
    found = {one.name: one for one in arms}
    return Benchmark(
        name="B4",
        title="Width to target",
        setup=(
            "mnist1d generated anew: 40,000 training signals, 5,000 each for validation and test.",
            f"Small host: an MLP 40-{SMALL}-10; big: 40-{BIG}-10. The small one with the `widen` kernel of "
            f"{BIG - SMALL} units is exactly the big one.",
            f"{STEPS} steps of 100 examples for big (10 epochs), AdamW, cosine to 0 over each arm's own steps; "
            f"learning rates {listed(task.rates)} for every arm, chosen by validation accuracy of keys "
            f"{listed(task.tuning)}; results are of keys 0 to 4.",
            f"esper: {GROWN_STEPS} steps, evaluated every {EVERY}; from the first evaluation on Tamiyo races the "
            f"widening against a conv1d kernel of width 4. Width alone: {WIDENED_STEPS} steps, the widening only. The "
            "steps are chosen so that all FLOPs together stay below 75 % of big's.",
        ),
        metric="accuracy, %",
        higher_is_better=True,
        claims=tuple(claim for name in (ESPER, WIDTH) for claim in _claims(found, name)),
        arms=(*arms, *control),
        notes=(
            _picked(found[ESPER]),
            "A kernel costs more than the units it stands for: the network with the widening as a kernel takes "
            f"{_overhead():.2f} times big's FLOPs a step, the blend and its guards included.",
            "An earlier run gave width alone 2,400 steps and the rates from 0.01 on: 78.3 ± 0.6 %, for 79 % of big's "
            "FLOPs. With 2,200 steps, for less than 75 %, validation of two keys chooses a higher rate, at which the "
            "gate culls the first widenings of the other keys.",
            "Negative control, the published 4,000 signals, where width alone gains little (the conv1d kernel does "
            "gain): " + _compared({one.name: one for one in control}),
        ),
    )


def specs(task: Task) -> list[Spec]:
    """All arms but those of the control."""
    ended = count(born(HOST, 0, (CONV,)))
    base = _base(task)
    more = [
        Spec(
            "final network from scratch",
            "The small host with the conv1d kernel, which esper ends with, from the start.",
            GROWN_STEPS,
            static(HOST, Schooling(GROWN_STEPS), task, (CONV,)),
        ),
        Spec(
            "low-rank adapters",
            "The small host with low-rank kernels, as many parameters as esper ends with.",
            STEPS,
            static(HOST, Schooling(STEPS), task, adapters(ended)),
        ),
        Spec(
            "random growth",
            "One of the two kernels, drawn, at a time that is drawn.",
            GROWN_STEPS,
            _growing(task, GROWN_STEPS, lambda key: Random(SETTINGS, 1, key)),
        ),
    ]
    return [*base, *more, *_grown(task)]


def _base(task: Task) -> list[Spec]:
    whole = Schooling(STEPS)
    part = Schooling(round(BUDGET * STEPS))
    return [
        Spec(SMALL_ARM, f"An MLP 40-{SMALL}-10.", STEPS, static(HOST, whole, task)),
        Spec(BIG_ARM, f"An MLP 40-{BIG}-10, as many steps.", STEPS, static(LARGE, whole, task)),
        Spec(EQUAL, "The same, its schedule over 75 % of the steps.", part.steps, static(LARGE, part, task)),
    ]


def _grown(task: Task) -> list[Spec]:
    alone = SETTINGS.model_copy(update={"blueprints": {"Sequential": "widen"}, "race": 1})
    return [
        Spec(
            WIDTH,
            "The small host, widened by Tamiyo: the widening against nothing.",
            WIDENED_STEPS,
            _growing(task, WIDENED_STEPS, lambda key: Tamiyo(alone), alone),
        ),
        Spec(
            ESPER,
            "The small host; Tamiyo races the widening, a conv1d kernel and nothing.",
            GROWN_STEPS,
            _growing(task, GROWN_STEPS, lambda key: Tamiyo(SETTINGS)),
        ),
    ]


def control_specs(task: Task) -> list[Spec]:
    """The arms that the claims compare."""
    return [*_base(task), *_grown(task)]


def _growing(
    task: Task, steps: int, policy: Callable[[int], Tamiyo | Random], settings: TamiyoSettings = SETTINGS
) -> Runner:
    growing = Growing(settings, EVERY, planned(HOST, [WIDEN, CONV] if settings.race > 1 else [WIDEN]))

    def runner(pairs: Pairs) -> list[Outcome]:
        return [grown(born(HOST, k), k, rate, Schooling(steps), growing, policy(k), task) for k, rate in pairs]

    return runner


def _claims(found: dict[str, Arm], name: str) -> list[Claim]:
    small, big, equal, ours = found[SMALL_ARM], found[BIG_ARM], found[EQUAL], found[name]
    gap = big.mean() - small.mean()
    closed = [100 * (run.test - small.mean()) / gap for run in ours.runs]
    shares = [100 * run.flops / big.mean("flops") for run in ours.runs]
    over = [run.test - other.test for run, other in zip(ours.runs, equal.runs, strict=True)]
    why = (
        "By a better organ than width: the race is won by the conv1d kernel."
        if name == ESPER
        else "The small network's head start is worth less than what its steps cost, and the kernel is dearer than "
        "the units it stands for."
    )
    met = statistics.fmean(closed) >= 90 and max(shares) <= 75
    better = statistics.fmean(over) >= 0.5
    return [
        Claim(
            f"{name}: closes the gap between small and big",
            ">= 90 % at <= 75 % of big's FLOPs",
            f"{spelt(closed, 1)} % at {spelt(shares, 1)} %",
            met,
            why if name == ESPER or not met else "",
        ),
        Claim(
            f"{name}: over big at equal FLOPs",
            ">= +0.5 points",
            f"{spelt(over)} points",
            better,
            why if name == ESPER or not better else "",
        ),
    ]


def _picked(esper: Arm) -> str:
    picks = [winner(run.events) or "nothing" for run in esper.runs]
    return "esper kept: " + ", ".join(f"{name} {picks.count(name)} times" for name in sorted(set(picks))) + "."


def _overhead() -> float:
    data, schooling = plentiful().train, Schooling(STEPS)
    return step_flops(born(HOST, 0, (WIDEN,)), schooling, data) / step_flops(born(LARGE, 0), schooling, data)


def _compared(control: dict[str, Arm]) -> str:
    told = [f"{name.removeprefix('4k: ')} {spelt(one.values('test'))}" for name, one in control.items()]
    return ", ".join(told) + " %."
