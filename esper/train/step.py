"""The compiled pieces of training: one optimiser step, the held-out evaluation, a copy to go back to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int32

from esper.errors import ArgumentError
from esper.growth.isolation import isolated_loss
from esper.growth.kernel_states import GrowthOptState, Optimizer
from esper.growth.optimizer import per_kernel
from esper.growth.recovery import recovered
from esper.growth.reserve import asleep
from esper.growth.schedule import Schedule, linear, ramped
from esper.jax_backend.devices import beside
from esper.jax_backend.model import MorphableModel
from esper.train.governor import finite, spread
from esper.train.objective import Objective

Metric = tuple[str, Callable[[Any, Any], jax.Array]]
"""A name, and a function of (outputs, batch) whose mean is reported."""


@struct.dataclass
class TrainState:
    """All that a training step moves on.

    Attributes:
        model: The model.
        opt_state: The optimiser's state.
        key: Of the whole run; each step folds its number into it.
        step: Steps done.
        loss: Sum of the training losses since the last evaluation.
        pull: Sum of each layer's squared gradient norm since then.
    """

    model: MorphableModel
    opt_state: Any
    key: jax.Array
    step: Int32[Array, ""]
    loss: Float32[Array, ""]
    pull: Float32[Array, " layers"]

    def rewound(self) -> TrainState:
        """The sums at zero again."""
        return replace(self, loss=jnp.zeros_like(self.loss), pull=jnp.zeros_like(self.pull))


@dataclass(frozen=True)
class Learner:
    """How to learn, static: equal learners share compiled steps.

    Attributes:
        objective: What is minimised.
        tx: The optimiser, one of `per_kernel`.
        blend_steps: Steps over which alpha rises while GRAFTING.
        rise: The alpha schedule.
        race: How many TRAINING kernels train each alone; 1: all of them together.
    """

    objective: Objective
    tx: optax.GradientTransformationExtraArgs
    blend_steps: int
    rise: Schedule = linear
    race: int = 1

    def begin(self, model: MorphableModel, key: jax.Array, opt_state: Any = None) -> TrainState:
        """The state before the first step; arrays are copied, since steps consume theirs."""
        own, held, own_key = copied((model, opt_state, key))
        layers = len(model.structure.sites)
        state = TrainState(
            own,
            self.tx.init(own.params) if held is None else held,
            own_key,
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.float32),
            jnp.zeros(layers, jnp.float32),
        )
        return beside(state, own.params)

    def resumed(self, state: TrainState) -> TrainState:
        """A state to go on from, copied likewise."""
        return copied(state)


@lru_cache(maxsize=32)
def with_kernels(tx: Optimizer, warmup_steps: int) -> optax.GradientTransformationExtraArgs:
    """`per_kernel(tx)`; cached, so that equal arguments are the same object, hence the same compiled step.

    An optimiser that is one of `per_kernel` already stays as it is.
    """
    if isinstance(tx, optax.GradientTransformationExtraArgs) and isinstance(_state_of(tx), GrowthOptState):
        return tx
    return optax.with_extra_args_support(per_kernel(tx, warmup_steps=warmup_steps))


def _state_of(tx: optax.GradientTransformation) -> Any:
    try:
        return jax.eval_shape(tx.init, {"host": {}, "kernels": {}})
    except (TypeError, ValueError, KeyError, AttributeError):
        return None  # it asks more of parameters than that they are a tree, so it is no `per_kernel`


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(learner: Learner, state: TrainState, batch: Any) -> TrainState:
    """One step: the host on its loss, TRAINING kernels on theirs, alpha along its schedule, failing kernels set aside.

    Args:
        learner: How to learn.
        state: Consumed: its memory is used for the new one.
        batch: A pytree of arrays.
    """
    step_key = jax.random.fold_in(state.key, state.step)

    def loss(model: MorphableModel) -> tuple[jax.Array, MorphableModel]:
        return learner.objective.training(model, batch, step_key)

    def objective(params: dict[str, Any]) -> tuple[jax.Array, MorphableModel]:
        return isolated_loss(loss, state.model.replace(params=params), race=learner.race)

    (value, moved), grads = jax.value_and_grad(objective, has_aux=True)(state.model.params)
    moved, grads = recovered(moved, grads)
    updates, opt_state = learner.tx.update(grads, state.opt_state, moved.params, asleep=asleep(moved))
    params = optax.apply_updates(moved.params, updates)
    return replace(
        state,
        model=moved.replace(params=params, seeds=ramped(moved.seeds, learner.blend_steps, learner.rise)),
        opt_state=opt_state,
        step=state.step + 1,
        loss=state.loss + value.astype(jnp.float32),
        pull=state.pull + pulls(state.model, grads["host"]),
    )


@struct.dataclass
class Measured:
    """What an evaluation measures, in evaluation mode.

    Attributes:
        losses: Mean loss of each batch.
        metrics: Mean of each metric, by name, for each batch.
        spread: How much the outputs differ from example to example.
        finite: Whether the losses and everything in the model that is alive are finite.
    """

    losses: Float[Array, " batches"]
    metrics: dict[str, Float[Array, " batches"]]
    spread: Float[Array, ""]
    finite: Bool[Array, ""]


@partial(jax.jit, static_argnums=(0, 1))
def evaluate(objective: Objective, metrics: tuple[Metric, ...], model: MorphableModel, batches: Any) -> Measured:
    """Loss, metrics and vital signs on held-out batches.

    Args:
        objective: What the loss is.
        metrics: What else is measured.
        model: The model.
        batches: A pytree of arrays with leading axes [batches, examples].
    """

    def on_batch(batch: Any) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        loss, outputs = objective.evaluation(model, batch)
        return loss, {name: jnp.mean(metric(outputs, batch)) for name, metric in metrics}, spread(outputs)

    losses, found, spreads = jax.lax.map(on_batch, batches)
    return Measured(losses, found, spreads.mean(), finite(model) & jnp.isfinite(losses).all())


@jax.jit
def copied(tree: Any) -> Any:
    """The arrays in memory of their own, to go back to, or for another thread to work on."""
    return jax.tree.map(jnp.copy, tree)


def pulls(model: MorphableModel, grads: dict[str, jax.Array]) -> Float32[Array, " layers"]:
    """Squared gradient norm of each layer's own parameters; 0 for a layer without any that trains."""
    found = []
    for site in model.structure.sites:
        own = [grad for name, grad in grads.items() if name.rpartition(".")[0] == site.name]
        found.append(sum((jnp.sum(jnp.abs(grad) ** 2) for grad in own), start=jnp.zeros(())))
    return jnp.stack(found).astype(jnp.float32) if found else jnp.zeros(0, jnp.float32)


def check_logits(model: MorphableModel, inputs: Any, classes: int) -> None:
    """Raises ArgumentError unless the model gives logits for these classes."""
    logits = jax.eval_shape(lambda m, x: m(x), model, inputs)
    if getattr(logits, "shape", None) != (len(inputs), classes) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ArgumentError(
            f"the model is to give logits, shape [batch, {classes}]; for inputs of shape {inputs.shape} "
            f"it gives {logits}"
        )
