"""A table of optax transformations, and runs in which kernels come and go under each."""

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compiling import compiled
from flax import struct
from jax.flatten_util import ravel_pytree
from torch import nn

import esper
from esper.growth.optimizer import per_kernel
from esper.train.compiles import counting_compiles

RATE = 0.01
KEY = jax.random.key(3)
SCHEDULE = optax.linear_schedule(1.0, 0.5, 20)


class Speed(NamedTuple):
    count: Any
    speed: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Place:
    count: Any
    start: Any


class Moments(struct.PyTreeNode):
    moments: Any
    kind: str = struct.field(pytree_node=False, default="mean")


class Row(NamedTuple):
    moment: Any
    norm: Any


def own_speed(params):
    return Speed(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))


def move_speed(updates, state, params=None):
    count = state.count + 1
    speed = jax.tree.map(lambda s, g: 0.9 * s + g / count, state.speed, updates)
    return jax.tree.map(lambda s: -RATE * s, speed), Speed(count, speed)


def move_place(updates, state, params=None):
    pull = jax.tree.map(lambda s, p, g: -RATE * g + 0.1 * (s - p), state.start, params, updates)
    return pull, Place(state.count + 1, state.start)


def start_rows(params):
    return Moments({name: Row(jnp.zeros_like(p), 0.0) for name, p in params.items()})


def move_rows(updates, state, params=None):
    rows = {
        n: Row(0.9 * r.moment + updates[n], r.norm + jnp.vdot(updates[n], updates[n])) for n, r in state.moments.items()
    }
    return {n: -RATE * row.moment / (1 + row.norm) for n, row in rows.items()}, state.replace(moments=rows)


def move_list(updates, state, params=None):
    leaves, shape = jax.tree.flatten(updates)
    speed = [0.9 * s + g for s, g in zip(state, leaves, strict=True)]
    return jax.tree.unflatten(shape, [-RATE * s for s in speed]), speed


def move_vector(updates, state, params=None):
    flat, back = ravel_pytree(updates)
    return back(-RATE * (0.9 * state + flat)), 0.9 * state + flat


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def kinds(params):
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", params)


# What keeps no clock of the run: a new kernel is as if it had been optimised alone from the beginning.
ALONE = {
    "adam": optax.adam(RATE),
    "adamw": optax.adamw(RATE, mask=matrices),
    "amsgrad": optax.amsgrad(RATE),
    "adabelief": optax.adabelief(RATE),
    "adafactor": optax.adafactor(RATE, min_dim_size_to_factor=2),
    "adagrad": optax.adagrad(RATE),
    "rmsprop": optax.rmsprop(RATE, centered=True, momentum=0.9),
    "lion": optax.lion(RATE),
    "novograd": optax.novograd(RATE),
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "nesterov": optax.sgd(RATE, momentum=0.9, nesterov=True),
    "ema": optax.chain(optax.ema(0.9), optax.scale(-RATE)),
    "clip": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(RATE)),
    "partition": optax.partition({"matrix": optax.adam(RATE), "vector": optax.sgd(RATE, momentum=0.9)}, kinds),
    "frozen": optax.multi_transform({"matrix": optax.adam(RATE), "vector": optax.set_to_zero()}, kinds),
    "masked": optax.chain(optax.masked(optax.trace(0.9), matrices), optax.scale(-RATE)),
    "apply_if_finite": optax.apply_if_finite(optax.adam(RATE), 2),
    "schedule_free_adamw": optax.contrib.schedule_free_adamw(RATE),
    "schedule_free_sgd": optax.contrib.schedule_free_sgd(RATE),
    "prodigy": optax.contrib.prodigy(),
    "user_named_tuple": optax.GradientTransformation(own_speed, move_speed),
    "user_dataclass": optax.GradientTransformation(
        lambda params: Place(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params)), move_place
    ),
}
# These hold values of parameters under other names than the parameters', so they need a state for each part.
NAMELESS = {
    "user_rows": optax.GradientTransformation(start_rows, move_rows),
    "user_list": optax.GradientTransformation(
        lambda params: jax.tree.leaves(jax.tree.map(jnp.zeros_like, params)), move_list
    ),
    "user_vector": optax.GradientTransformation(lambda params: jnp.zeros_like(ravel_pytree(params)[0]), move_vector),
}
CLOCKED = {
    "schedule": optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(SCHEDULE), optax.scale(-RATE)),
    "scheduled_partition": optax.partition({"matrix": optax.adam(SCHEDULE), "vector": optax.sgd(SCHEDULE)}, kinds),
    "inject": optax.inject_hyperparams(optax.adamw)(RATE),
    "inject_schedule": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(RATE, 0.0, 20)),
    "plateau": optax.chain(optax.adam(RATE), optax.contrib.reduce_on_plateau(patience=1, cooldown=1)),
    "schedule_free_schedule": optax.contrib.schedule_free_adamw(RATE, warmup_steps=6),
    "finite_schedule": optax.apply_if_finite(optax.adam(SCHEDULE), 2),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, key=7), optax.sgd(RATE)),
    "multi_steps": optax.MultiSteps(optax.adam(SCHEDULE), 3),
    "multi_steps_plateau": optax.MultiSteps(
        optax.chain(optax.adam(RATE), optax.contrib.reduce_on_plateau()), lambda step: 2 + step
    ),
    "sam": optax.contrib.sam(optax.adam(RATE), optax.chain(optax.contrib.normalize(), optax.sgd(0.1))),
}
TABLE = ALONE | NAMELESS | CLOCKED
NAMED = ALONE | CLOCKED


def bits(tree):
    def raw(leaf):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return leaf.dtype, np.asarray(leaf).tobytes()

    return jax.tree.structure(tree), [raw(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]


def avals(tree):
    return jax.tree.structure(tree), [jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]


@cache
def hosted():
    return esper.wrap(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), seeds_per_layer=2)


def gradients(params, number):
    """Of each part by itself: what the host's are does not depend on which kernels there are."""
    return jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size) + number).reshape(p.shape), params)


def stepper(name, tx, compiled=compiled):
    @compiled
    def step(params, state, number):
        extra = {"value": 1.0 + 0.01 * number} if "plateau" in name else {}
        updates, state = tx.update(gradients(params, number), state, params, **extra)
        return optax.apply_updates(params, updates), state, updates

    return step


class Run:
    """A model that is trained and changed."""

    def __init__(self, tx, step, given=None):
        self.model, self.tx, self.step, self.given = hosted(), tx, step, given
        self.state, self.number = tx.init(self.model.params), 0

    def train(self, steps):
        """The updates of so many steps."""
        seen = []
        for _ in range(steps):
            params, self.state, updates = self.step(self.model.params, self.state, jnp.asarray(self.number))
            self.model, self.number = self.model.replace(params=params), self.number + 1
            seen.append(updates)
        return seen

    def germinate(self, layer, seed=0):
        self.model, self.state = esper.germinate(
            self.model, self.state, layer=layer, seed=seed, blueprint="low_rank", key=KEY, tx=self.given
        )

    def cull(self, layer, seed=0):
        self.model, self.state = esper.cull(self.model, self.state, layer=layer, seed=seed, tx=self.given)


def plain(name):
    return Run(TABLE[name], stepper(name, TABLE[name], jax.jit), TABLE[name])


def growing(tx, name="", warmup_steps=0):
    tx = per_kernel(tx, warmup_steps=warmup_steps)
    return Run(tx, stepper(name, tx))


class Phase(NamedTuple):
    """A change of the model, the steps after it, and what they compiled."""

    before: Any
    changed: Any
    params: Any
    updates: list
    after: Any
    compiles: int


@cache
def story(name):
    """Two kernels come and go; beside it, the host by itself for as many steps of the same program."""
    run, phases = growing(TABLE[name], name), []
    changes = [
        (lambda: None, 4),
        (lambda: run.germinate("2"), 3),
        (lambda: run.germinate("0"), 2),
        (lambda: run.cull("0"), 1),
        (lambda: run.cull("2"), 1),
    ]
    with counting_compiles() as counter:
        for change, steps in changes:
            before = run.state
            change()
            changed, params = run.state, run.model.params
            counter.take()
            updates = run.train(steps)
            compiles = counter.take().programs.count("jit(step)")
            phases.append(Phase(before, changed, params, updates, run.state, compiles))
    alone = Run(run.tx, run.step)
    alone.train(run.number)
    return run, phases, alone
