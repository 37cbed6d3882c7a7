"""Tasks on which growing cannot help, and what the built-in policy does there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import esper
from benchmarks.evidence.results import Event
from esper.configs import TamiyoSettings
from esper.jax_backend.model import MorphableModel
from esper.train.data import load
from esper.train.fit import FitResult
from esper.train.objective import accuracy

Examples = tuple[jax.Array, jax.Array]


class Parts(NamedTuple):
    """What is trained on, what is decided on, what is touched once."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Task:
    """A task, and a host that is as good on it as it gets.

    Attributes:
        name: For the report.
        about: What it is.
        parts: The data of a key.
        build: Makes the host.
        rate: Learning rate; it falls to 0 along half a cosine.
    """

    name: str
    about: str
    parts: Callable[[int], Parts]
    build: Callable[[], nn.Module]
    rate: float


@dataclass(frozen=True)
class Outcome:
    """One run with growth beside the same run without.

    Attributes:
        key: What data, initial values and batches were drawn from.
        germinated: Kernels.
        culled: Those culled at any gate.
        grafted: Those that passed the first gate.
        kept: Those that were fossilised.
        grown: Test accuracy in percent, with growth.
        alone: Without.
        parameters: Of the network that came out.
        host_parameters: Of the host.
        flops: By the ledger, with growth.
        host_flops: Without.
        compiles: By event, what was compiled after the first evaluation.
        seconds: Of both runs.
        events: What growth did.
    """

    key: int
    germinated: int
    culled: int
    grafted: int
    kept: int
    grown: float
    alone: float
    parameters: int
    host_parameters: int
    flops: int
    host_flops: int
    compiles: dict[str, int]
    seconds: float
    events: tuple[Event, ...]


STEPS, EVERY, BATCH = 2000, 25, 64
SETTINGS = TamiyoSettings(
    patience=2, train_steps=50, blend_steps=50, hold_steps=50, embargo_steps=0, max_kernels=8, start_step=400
)
"""Tamiyo's defaults, but for shorter stages and no rest, so that a run sees many germinations."""


def digits(key: int) -> Parts:
    """scikit-learn's 1,797 digits: half to train on, a quarter each for validation and test."""
    found = load("digits", "flat", key=jax.random.key(key), test_fraction=0.25, validation_fraction=0.25)
    return Parts(*((part.inputs, part.labels) for part in (found.train, found.validation, found.test)))


def shuffled(key: int) -> Parts:
    """The digits with the labels of each part in another order: nothing about them can be known."""
    root = jax.random.key(10_000 + key)
    moved = (
        (inputs, jax.random.permutation(jax.random.fold_in(root, at), labels))
        for at, (inputs, labels) in enumerate(digits(key))
    )
    return Parts(*moved)


def clouds(key: int) -> Parts:
    """Four Gaussian classes of one covariance in ten dimensions: no classifier is better than a linear one."""
    draw = np.random.default_rng(key)
    centres = 0.6 * draw.normal(size=(4, 10))

    def part(count: int) -> Examples:
        labels = draw.integers(0, 4, count)
        rows = centres[labels] + draw.normal(size=(count, 10))
        return jnp.asarray(rows, jnp.float32), jnp.asarray(labels, jnp.int32)

    return Parts(part(8_000), part(2_000), part(20_000))


def wide() -> nn.Module:
    """For the digits: 256 hidden units, which fit the training part wholly."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def linear() -> nn.Module:
    """For the clouds: all that is needed."""
    return nn.Sequential(nn.Linear(10, 4))


TASKS = (
    Task("digits", "scikit-learn's digits, an MLP that fits its training part wholly", digits, wide, 3e-3),
    Task("clouds", "four Gaussian clouds, a linear host, which is optimal", clouds, linear, 1e-2),
    Task("shuffled labels", "the digits with shuffled labels, the same MLP", shuffled, wide, 3e-3),
)


def outcome(task: Task, key: int) -> Outcome:
    """A run with Tamiyo, and one without."""
    start = time.perf_counter()
    parts, model = task.parts(key), host(task, key)
    grown, alone = (_fitted(task, model, parts, key, settings) for settings in (SETTINGS, None))
    events = [record.event for record in grown.records]
    compiles: dict[str, int] = {}
    evaluated = events.index("evaluate")
    for record in grown.records[evaluated + 1 :]:
        compiles[record.event] = compiles.get(record.event, 0) + record.compiles
    return Outcome(
        key=key,
        germinated=events.count("germinate"),
        culled=events.count("culled"),
        grafted=events.count("grafting"),
        kept=events.count("fossilized"),
        grown=_correct(grown.model, parts.test),
        alone=_correct(alone.model, parts.test),
        parameters=_count(grown.model),
        host_parameters=_count(model),
        flops=grown.ledger.total_flops,
        host_flops=alone.ledger.total_flops,
        compiles={event: count for event, count in compiles.items() if count},
        seconds=time.perf_counter() - start,
        events=tuple(
            Event(record.step, record.event, record.reason)
            for record in grown.records
            if record.event in ("grafting", "fossilized")
        ),
    )


def _fitted(task: Task, model: MorphableModel, parts: Parts, key: int, growth: TamiyoSettings | None) -> FitResult:
    return esper.fit(
        model,
        parts.train,
        tx=optimizer(task.rate),
        steps=STEPS,
        key=jax.random.key(key),
        batch_size=BATCH,
        validation=parts.validation,
        every=EVERY,
        metrics={"accuracy": accuracy},
        growth=growth,
    )


@lru_cache(maxsize=8)
def optimizer(rate: float) -> optax.GradientTransformation:
    """AdamW with its schedule; equal rates, the same object."""
    return optax.adamw(optax.cosine_decay_schedule(rate, STEPS))


def host(task: Task, key: int) -> MorphableModel:
    """The task's host with initial values of a key; all keys share one structure, hence compiled steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)
        state = task.build().state_dict()
    model = _template(task)
    drawn = {name: jnp.asarray(state[name].numpy().copy()) for name in model.params["host"]}
    return model.replace(params={**model.params, "host": drawn})


@cache
def _template(task: Task) -> MorphableModel:
    return esper.wrap(task.build())


def _correct(model: MorphableModel, part: Examples) -> float:
    return 100 * float(jnp.mean(accuracy(model(part[0]), part[1])))


def _count(model: MorphableModel) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model.params))


def interval(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share, from counts."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high
