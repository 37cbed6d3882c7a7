"""JAX as most of its users write it: the networks of `idiomatic/`, optax, one jitted step."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import jax
import optax

from benchmarks.speed.contenders.contender import Contender, Unavailable
from benchmarks.speed.contenders.jitted import TX, batch, compiled, cross_entropy
from benchmarks.speed.idiomatic.arrays import converted
from benchmarks.speed.workloads import Problem


def enter(problem: Problem) -> Contender:
    """The network of the workload's family."""
    place = f"benchmarks.speed.idiomatic.{problem.workload.family}"
    if find_spec(place) is None:
        raise Unavailable("not written for this network")
    forward = import_module(place).forward(problem.module)
    (inputs, labels), (params, stats) = batch(problem), converted(problem.module)

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
        # Torch's order, for the comparison; the idiomatic U-Net has its classes last.
        return logits if problem.workload.class_axis == -1 else logits.transpose(0, 3, 1, 2)

    return compiled(train, infer, (params, stats), TX.init(params), inputs, labels)
