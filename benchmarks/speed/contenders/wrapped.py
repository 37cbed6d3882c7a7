"""esper, as its users have it: `wrap`, `apply(train=True)`, optax, and the criterion of `esper.fit`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import torch
from torch import nn

import esper
from benchmarks.speed.contenders.contender import Contender, timed
from benchmarks.speed.contenders.jitted import adamw, batch, compiled
from benchmarks.speed.workloads import Problem
from esper.train.objective import cross_entropy


def enter(problem: Problem) -> Contender:
    """The wrapped module; the first abstract evaluation is where it is captured, later ones find the Program."""
    (inputs, labels), tx = batch(problem), adamw(problem)
    # The first capture of a process imports the exporter, which is not counted, as with torch.compile.
    esper.wrap(nn.Linear(1, 1))(torch.ones(1, 1))
    model = esper.wrap(problem.module)
    capturing = timed(lambda: jax.eval_shape(lambda m, x: m.apply(*x, train=True)[0], model, inputs))[1]
    train = train_step(tx, problem.workload.class_axis)
    return compiled(train, infer, model, tx.init(model.params), inputs, labels, {"capture": capturing})


def train_step(tx: optax.GradientTransformation, axis: int):
    """One step, for logits with classes along this axis."""

    def train(model, opt_state, inputs, labels):
        def loss_fn(params):
            logits, moved = model.replace(params=params).apply(*inputs, train=True)
            # The criterion has classes last.
            return jnp.mean(cross_entropy(jnp.moveaxis(logits, axis, -1), labels)), moved

        (loss, moved), grads = jax.value_and_grad(loss_fn, has_aux=True)(model.params)
        updates, opt_state = tx.update(grads, opt_state, model.params)
        return moved.replace(params=optax.apply_updates(model.params, updates)), opt_state, loss

    return train


def infer(model, inputs):
    """Evaluation mode."""
    return model(*inputs)
