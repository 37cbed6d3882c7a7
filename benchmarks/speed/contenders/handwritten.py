"""JAX by hand: as most of its users write it (`idiomatic/`), and as an expert does for this
processor (`tuned/`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import optax

from benchmarks.speed.contenders.contender import Contender
from benchmarks.speed.contenders.jitted import adamw, batch, compiled, cross_entropy
from benchmarks.speed.idiomatic.arrays import Arrays, converted
from benchmarks.speed.tuned import layers as expert
from benchmarks.speed.workloads import Problem

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""Of logits with classes last, and labels."""


def idiomatic(problem: Problem) -> Contender:
    """The network of the workload's family, of the layers that most users write."""
    return _entered(problem, _family(problem)(problem.module), converted(problem.module), cross_entropy)


def tuned(problem: Problem) -> Contender:
    """The same network, of an expert's layers."""
    forward = _family(problem)(problem.module, expert.Net)
    return _entered(problem, forward, expert.converted(problem.module), expert.cross_entropy)


def _family(problem: Problem) -> Callable[..., Callable[..., Any]]:
    return import_module(f"benchmarks.speed.idiomatic.{problem.workload.family}").forward


def _entered(
    problem: Problem, forward: Callable[..., Any], net: tuple[Arrays, Arrays], cross_entropy: Loss
) -> Contender:
    (inputs, labels), tx = batch(problem), adamw(problem)

    def train(net, opt_state, inputs, labels):
        params, stats = net

        def loss_fn(params):
            logits, moved = forward(params, stats, inputs, train=True)
            return cross_entropy(logits, labels), moved

        (loss, moved), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), moved), opt_state, loss

    def infer(net, inputs):
        logits = forward(*net, inputs, train=False)[0]
        # Torch's order, for the comparison; the U-Net's classes are last here.
        return logits if problem.workload.class_axis == -1 else logits.transpose(0, 3, 1, 2)

    return compiled(train, infer, net, tx.init(net[0]), inputs, labels)
