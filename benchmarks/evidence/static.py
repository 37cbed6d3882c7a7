"""Arms that do not grow: one compiled program trains a model from several keys with several learning rates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.evidence.arms import Outcome, Task
from benchmarks.evidence.hosts import count
from benchmarks.evidence.learning import Schooling, batch_table, cross_entropy, measured
from benchmarks.evidence.signals import Split
from esper.jax_backend.flops import flops
from esper.jax_backend.model import MorphableModel

POINTS = 20
"""At how many steps, evenly spaced, the validation split is looked at for the plot; this costs no FLOPs."""

Params = dict[str, Any]


def trained(
    models: Sequence[MorphableModel], rates: Sequence[float], keys: Sequence[int], schooling: Schooling, task: Task
) -> list[Outcome]:
    """Trains models of one structure, each with its learning rate and from its key.

    One program runs them one after the other: on a CPU, batches of small products are slower than the products.
    """
    start = time.perf_counter()
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(model.params for model in models))
    roots = jax.vmap(jax.random.key)(jnp.asarray(keys, jnp.uint32))
    of_all = jnp.asarray(rates, jnp.float32)
    made, losses, accuracies = jax.device_get(
        _all(schooling, models[0], params, of_all, roots, task.data.train, task.data.validation)
    )
    seconds = (time.perf_counter() - start) / len(models)
    spent = schooling.steps * step_flops(models[0], schooling, task.data.train)
    points = [(spent * (place + 1) / POINTS) for place in range(POINTS)]
    return [
        Outcome(
            model=model.replace(params=jax.tree.map(lambda leaf, at=at: jnp.asarray(leaf[at]), made)),
            loss=float(losses[at][-1]),
            accuracy=float(accuracies[at][-1]),
            flops=spent,
            parameters=count(model),
            seconds=seconds,
            losses=tuple(zip(points, map(float, losses[at]), strict=True)),
            accuracies=tuple(zip(points, map(float, accuracies[at]), strict=True)),
        )
        for at, model in enumerate(models)
    ]


def step_flops(model: MorphableModel, schooling: Schooling, train: Split) -> int:
    """FLOPs of one training step: forward, backward and optimiser."""
    tx = schooling.optimizer(1e-3)
    rows = jnp.zeros(schooling.batch, jnp.int32)
    return flops(partial(_step, tx), model, tx.init(model.params), train.inputs[rows], train.labels[rows])


@partial(jax.jit, static_argnums=0)
def _all(
    schooling: Schooling,
    template: MorphableModel,
    params: Params,
    rates: jax.Array,
    roots: jax.Array,
    data: Split,
    validation: Split,
) -> tuple[Params, jax.Array, jax.Array]:
    def one(run: tuple[Params, jax.Array, jax.Array]) -> tuple[Params, jax.Array, jax.Array]:
        own, rate, root = run
        tx = schooling.optimizer(rate)
        table = batch_table(root, len(data), schooling.batch, schooling.steps)

        def stretch(carry: Any, rows: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            def advance(carry: Any, row: jax.Array) -> tuple[Any, None]:
                return _step(tx, *carry, data.inputs[row], data.labels[row]), None

            carry, _ = jax.lax.scan(advance, carry, rows)
            return carry, measured(carry[0], validation)

        carry = (template.replace(params=own), tx.init(own))
        (model, _), found = jax.lax.scan(stretch, carry, table.reshape(POINTS, -1, schooling.batch))
        return model.params, *found

    return jax.lax.map(one, (params, rates, roots))


def _step(
    tx: optax.GradientTransformation, model: MorphableModel, opt_state: Any, inputs: jax.Array, labels: jax.Array
) -> tuple[MorphableModel, Any]:
    def loss(params: Params) -> jax.Array:
        return cross_entropy(model.replace(params=params)(inputs, train=True), labels).mean()

    grads = jax.grad(loss)(model.params)
    updates, opt_state = tx.update(grads, opt_state, model.params)
    return model.replace(params=optax.apply_updates(model.params, updates)), opt_state
