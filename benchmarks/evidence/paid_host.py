"""B2, the paid-for host: a small network that is trained already, extended; the big one has to start from nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from benchmarks.evidence.arms import Outcome, Pairs, Runner, Spec, Task, arm, with_outcomes
from benchmarks.evidence.grown import Growing, grown, winner
from benchmarks.evidence.hosts import Graft, extended
from benchmarks.evidence.learning import Schooling
from benchmarks.evidence.racing import (
    BIG,
    HOST,
    LARGE,
    SMALL,
    WIDEN,
    adapters,
    conv,
    listed,
    planned,
    static,
    steps_for,
)
from benchmarks.evidence.results import Arm, Benchmark, Claim, spelt
from benchmarks.evidence.signals import Split, plentiful
from benchmarks.evidence.static import trained
from esper.configs import TamiyoSettings
from esper.growth.controls import Random
from esper.growth.tamiyo import Tamiyo
from esper.jax_backend.model import MorphableModel

STEPS, GROWN_STEPS, EVERY = 4000, 2600, 100
CONV = conv(4)
SETTINGS = TamiyoSettings(
    trigger="always",
    blueprints={"Sequential": ["widen", "conv1d"]},
    race=2,
    train_steps=100,
    blend_steps=50,
    hold_steps=50,
    max_kernels=1,
    swap=0,
)
HELD_OUT = 2_000
HOST_ARM, BIG_ARM, ESPER = f"small host ({SMALL}), paid for", f"big ({BIG})", "esper, extending the host"
SCRATCH = "final network from scratch"
Hosts = dict[int, MorphableModel]


def run() -> Benchmark:
    """All arms and claims."""
    data = plentiful()
    held = Split(data.validation.inputs[:HELD_OUT], data.validation.labels[:HELD_OUT])
    keys = tuple(range(5))
    task = Task(data._replace(validation=held), rates=(1e-2, 3e-2, 6e-2), tuning=(0, 1), keys=keys, by="loss")
    about = f"An MLP 40-{SMALL}-10; its FLOPs are counted apart."
    host, outcomes = with_outcomes(Spec(HOST_ARM, about, STEPS, static(HOST, Schooling(STEPS), task)), task)
    hosts = {key: outcome.model for key, outcome in zip(keys, outcomes, strict=True)}
    esper = _grown(task, hosts)
    arms = [host, *_from_scratch(task, esper.mean("flops")), *_beside(task, hosts, esper), esper]
    found = {one.name: one for one in arms}
    return Benchmark(
        name="B2",
        title="The paid-for host",
        setup=(
            f"mnist1d generated anew: 40,000 training signals, {HELD_OUT:,} for validation, 5,000 for test.",
            f"Host: an MLP 40-{SMALL}-10, trained for {STEPS} steps, then frozen. Big: 40-{BIG}-10 from scratch.",
            f"100 examples a step, AdamW, cosine to 0 over each arm's own steps; learning rates {listed(task.rates)} "
            f"for every arm, chosen by validation loss of keys {listed(task.tuning)}; results are of keys 0 to 4.",
            f"esper: {GROWN_STEPS} steps, evaluated every {EVERY}; from the first evaluation on Tamiyo races a "
            f"widening to {BIG} units against a conv1d kernel of width 4, beside the host as a whole. Its FLOPs "
            "include the host's forward, and not what the host has cost; the table of claims says both.",
        ),
        metric="loss, nats",
        higher_is_better=False,
        claims=tuple(_claims(found)),
        arms=tuple(arms),
        notes=(_picked(esper), *_crossover(found)),
    )


def _grown(task: Task, hosts: Hosts) -> Arm:
    about = "The trained host, frozen; Tamiyo races two kernels beside it and nothing."
    return arm(Spec(ESPER, about, GROWN_STEPS, _growing(task, hosts, lambda key: Tamiyo(SETTINGS))), task)


def _growing(task: Task, hosts: Hosts, policy: Callable[[int], Tamiyo | Random]) -> Runner:
    growing = Growing(SETTINGS, EVERY, planned(HOST, [WIDEN, CONV]))

    def runner(pairs: Pairs) -> list[Outcome]:
        return [
            grown(extended(HOST, hosts[k]), k, rate, Schooling(GROWN_STEPS), growing, policy(k), task)
            for k, rate in pairs
        ]

    return runner


def _from_scratch(task: Task, flops: float) -> list[Arm]:
    """The big network and the grown one from scratch, with several budgets."""
    made = [arm(Spec(BIG_ARM, "From scratch.", STEPS, static(LARGE, Schooling(STEPS), task)), task)]
    for name, about, host, grafts, times in (
        ("big, FLOPs of extending", "From scratch, for as many FLOPs as esper takes.", LARGE, (), 1.0),
        ("big, 4 times these FLOPs", "Likewise.", LARGE, (), 4.0),
        (f"{SCRATCH}, half the FLOPs", "The host with the conv1d kernel, from nothing.", HOST, (CONV,), 0.5),
        (SCRATCH, "The same, for as many FLOPs as esper takes.", HOST, (CONV,), 1.0),
        (f"{SCRATCH}, twice the FLOPs", "Likewise.", HOST, (CONV,), 2.0),
    ):
        steps = steps_for(times * flops, host, task, grafts)
        made.append(arm(Spec(name, about, steps, static(host, Schooling(steps), task, grafts)), task))
    return made


def _beside(task: Task, hosts: Hosts, esper: Arm) -> list[Arm]:
    """The other ways to extend the host."""
    grafts = adapters(round(esper.mean("parameters")))
    specs = [
        Spec(
            "low-rank adapters",
            "The trained host, frozen, with low-rank kernels from the first step, as many parameters as esper's.",
            GROWN_STEPS,
            _adapted(task, hosts, grafts),
        ),
        Spec(
            "random growth",
            "The trained host, frozen; one of the two kernels, drawn, at a time that is drawn.",
            GROWN_STEPS,
            _growing(task, hosts, lambda key: Random(SETTINGS, 1, key)),
        ),
    ]
    return [arm(spec, task) for spec in specs]


def _adapted(task: Task, hosts: Hosts, grafts: Sequence[Graft]) -> Runner:
    def runner(pairs: Pairs) -> list[Outcome]:
        models = [extended(HOST, hosts[key], grafts) for key, _ in pairs]
        return trained(models, [r for _, r in pairs], [key for key, _ in pairs], Schooling(GROWN_STEPS), task)

    return runner


def _claims(found: dict[str, Arm]) -> list[Claim]:
    host, big, esper = found[HOST_ARM], found[BIG_ARM], found[ESPER]
    whole, target = big.mean("flops"), big.mean()
    below = [run.test - target for run in esper.runs]
    shares = [100 * run.flops / whole for run in esper.runs]
    both = [100 * (run.flops + host.mean("flops")) / whole for run in esper.runs]
    worst = [
        max(loss - before.validation for _, loss in run.curve)
        for run, before in zip(esper.runs, host.runs, strict=True)
    ]
    keys = f"{sum(value <= 0 for value in below)} of {len(below)}"
    reached = statistics.fmean(below) <= 0
    gained = [before.test - run.test for before, run in zip(host.runs, esper.runs, strict=True)]
    return [
        Claim(
            f"Reaches big's test loss ({spelt(big.values('test'), 3)})",
            "at <= 50 % of its FLOPs from scratch, the host's own apart",
            f"{spelt(esper.values('test'), 3)}, {keys} keys, at {spelt(shares, 1)} % ({spelt(both, 1)} % with the "
            "host's own)",
            reached and statistics.fmean(shares) <= 50,
            "By a conv1d kernel, which from scratch would do it too: see the crossover."
            if reached
            else f"The loss is {spelt(below, 3)} above.",
        ),
        Claim(
            "Never falls below the host",
            "no evaluation with a higher validation loss",
            f"at most {max(worst):+.4f}; at the end {spelt(gained, 3)} below the host on test",
            max(worst) <= 1e-6,
            f"Of {sum(len(run.curve) for run in esper.runs)} evaluations of all keys. The host is frozen.",
        ),
    ]


def _picked(esper: Arm) -> str:
    picks = [winner(run.events) or "nothing" for run in esper.runs]
    return "esper kept: " + ", ".join(f"{name} {picks.count(name)} times" for name in sorted(set(picks))) + "."


def _crossover(found: dict[str, Arm]) -> list[str]:
    """From which FLOPs on a network from scratch is better than the extended host."""
    esper, host = found[ESPER], found[HOST_ARM].mean("flops")
    own, told = esper.mean("flops"), []
    for name, arms in (
        ("the big network", [one for one in found.values() if one.name.startswith("big")]),
        ("the final network", [one for one in found.values() if one.name.startswith(SCRATCH)]),
    ):
        budgets = sorted((one.mean("flops"), one.mean()) for one in arms)
        at = _crossing(budgets, esper.mean())
        seen = ", ".join(f"{loss:.3f} at {flops / 1e9:.2f}" for flops, loss in budgets)
        where = (
            f"from {at / 1e9:.2f} GFLOPs on" if at else f"at none of these budgets, up to {budgets[-1][0] / 1e9:.1f}"
        )
        told.append(
            f"Crossover: {name} from scratch is better than the extended host {where} (loss by GFLOPs: {seen}); "
            f"extending takes {own / 1e9:.2f}, and {(own + host) / 1e9:.2f} with the host's own."
        )
    return told


def _crossing(budgets: list[tuple[float, float]], loss: float) -> float | None:
    """Where the loss, linear in the logarithm of the budget between two, falls to this one; None: it does not."""
    if budgets[0][1] <= loss:
        return budgets[0][0]
    for (low, before), (high, after) in pairwise(budgets):
        if after <= loss:
            share = (before - loss) / (before - after)
            return float(np.exp(np.log(low) + share * np.log(high / low)))
    return None
