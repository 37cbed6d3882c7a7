"""JAX by hand: as most of its users write it (`idiomatic/`), and as an expert does for this processor (`tuned/`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import jax
import optax

from benchmarks.speed.contenders.contender import Contender, Unavailable
from benchmarks.speed.contenders.jitted import TX, batch, compiled, cross_entropy
from benchmarks.speed.idiomatic.arrays import Arrays, converted
from benchmarks.speed.workloads import Problem

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""Of logits with classes last, and labels."""


def idiomatic(problem: Problem) -> Contender:
    """The network of the workload's family in `idiomatic/`."""
    return _entered(problem, _family("idiomatic", problem), converted(problem.module), cross_entropy)


def tuned(problem: Problem) -> Contender:
    """The network of the workload's family in `tuned/`."""
    family = _family("tuned", problem)
    layers = import_module("benchmarks.speed.tuned.layers")
    return _entered(problem, family, layers.converted(problem.module), layers.cross_entropy)


def _family(package: str, problem: Problem) -> ModuleType:
    package = f"benchmarks.speed.{package}"
    place = f"{package}.{problem.workload.family}"
    if find_spec(package) is None or find_spec(place) is None:
        raise Unavailable("not written for this network")
    return import_module(place)


def _entered(problem: Problem, family: ModuleType, net: tuple[Arrays, Arrays], cross_entropy: Loss) -> Contender:
    forward, (inputs, labels) = family.forward(problem.module), batch(problem)

    def train(net, opt_state, inputs, labels):
        params, stats = net

        def loss_fn(params):
            logits, moved = forward(params, stats, inputs, train=True)
            return cross_entropy(logits, labels), moved

        (loss, moved), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), moved), opt_state, loss

    def infer(net, inputs):
        logits = forward(*net, inputs, train=False)[0]
        # Torch's order, for the comparison; the U-Net's classes are last here.
        return logits if problem.workload.class_axis == -1 else logits.transpose(0, 3, 1, 2)

    return compiled(train, infer, net, TX.init(net[0]), inputs, labels)
