"""What seeds cost: a train step with dormant ones, and with one that is active, beside the same step without any."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from torch import nn

import esper
from benchmarks.speed.contenders.contender import timed
from benchmarks.speed.contenders.jitted import adamw, batch
from benchmarks.speed.contenders.wrapped import train_step
from benchmarks.speed.costs import SeededStep, SeedRun
from benchmarks.speed.hlo import instructions
from benchmarks.speed.workloads import WORKLOADS, Problem, prepared
from esper import MorphableModel
from esper import SeedLifecycleState as State
from esper.allocation import keep_freed_memory
from esper.jax_backend.flops import flops

LAYERS = {"mlp": "2", "gpt": "blocks.2.mlp.expand", "resnet18_cifar": "stages.1.0.conv2"}
"""Workloads, and the layer of each that has the active seed."""
SEEDS, RANK = 4, 32
TURNS, PER_TURN, COMPILES = 10, 5, 3
"""Turns, the timed steps of each, and how often each step is compiled: more than where rivals are compared, as one
percent is to be told from noise."""


def one_run(workload: str) -> SeedRun:
    """One run of a listed workload, in a process that keeps the memory it frees."""
    keep_freed_memory()
    return measured(prepared(WORKLOADS[workload]), LAYERS[workload])


def measured(problem: Problem, layer: str, turns: int = TURNS, compiles: int = COMPILES) -> SeedRun:
    """The steps are compiled, and then run, in turns that each of them begins as often as the others."""
    steps = {name: _Step(problem, model) for name, model in _models(problem.module, layer).items()}
    for turn in range(compiles):
        for name in _rotated(list(steps), turn):
            steps[name].compile()
    for turn in range(turns):
        for name in _rotated(list(steps), turn):
            steps[name].take_turn()
    return {name: step.found() for name, step in steps.items()}


def _models(module: nn.Module, layer: str) -> dict[str, MorphableModel]:
    """By default a model has its seeds on every linear and convolution layer."""
    return {
        "plain": esper.wrap(module, target_layers=[]),
        "dormant": esper.wrap(module, seeds_per_layer=SEEDS),
        "active": _grown(esper.wrap(module, seeds_per_layer=SEEDS), layer),
    }


def _grown(model: MorphableModel, layer: str) -> MorphableModel:
    options, key = {"rank": RANK}, jax.random.key(0)
    model, _ = esper.germinate(model, None, layer=layer, blueprint="low_rank", options=options, key=key)
    model = esper.transition(model, layer=layer, seed=0, to=State.GRAFTING)
    model = esper.set_alpha(model, layer=layer, seed=0, alpha=1.0)
    return esper.transition(model, layer=layer, seed=0, to=State.ACTIVE)


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


class _Step:
    """A train step of one model, with what was found of it."""

    def __init__(self, problem: Problem, model: MorphableModel) -> None:
        tx = adamw(problem)
        self.train = train_step(tx, problem.workload.class_axis)
        # Donated from step to step, so it must not share arrays with anything.
        self.state: tuple[Any, ...] = jax.tree.map(jnp.copy, (model, tx.init(model.params)))
        self.batch = batch(problem)
        self.flops = flops(self.train, *self.state, *self.batch)
        self.program: Any = None
        self.text = ""
        self.compiling: list[float] = []
        self.stepping: list[float] = []

    def compile(self) -> None:
        """Once more, from nothing: JAX would otherwise hand out what it compiled before."""
        jax.clear_caches()
        lowered = jax.jit(self.train, donate_argnums=(0, 1)).lower(*self.state, *self.batch)
        self.text = lowered.as_text()
        self.program, seconds = timed(lowered.compile)
        self.compiling.append(seconds)

    def take_turn(self) -> None:
        """The first step of a turn is not timed."""
        self.stepping += [timed(self._step)[1] for _ in range(1 + PER_TURN)][1:]

    def found(self) -> SeededStep:
        """What is known after the turns."""
        return SeededStep(
            step_ms=tuple(1e3 * seconds for seconds in self.stepping),
            compile_s=tuple(self.compiling),
            lowered_bytes=len(self.text),
            instructions=len(instructions(self.program.as_text())),
            flops=self.flops,
        )

    def _step(self) -> None:
        *held, _ = jax.block_until_ready(self.program(*self.state, *self.batch))
        self.state = tuple(held)
