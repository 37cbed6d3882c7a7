"""The compiled pieces of training: one optimiser step, and the held-out evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Float32, Int, Int32

from esper.configs import TrainingSettings
from esper.growth.isolation import isolated_loss
from esper.growth.optimizer import per_kernel
from esper.growth.recovery import recovered
from esper.growth.schedule import Schedule, linear, ramped
from esper.jax_backend.model import MorphableModel
from esper.train.data import Split


@struct.dataclass
class TrainState:
    """All that a training step moves on.

    Attributes:
        model: The model.
        opt_state: The optimiser's state.
        step: Steps done.
        loss: Sum of the training losses since the last evaluation.
        pull: Sum of each layer's squared gradient norm since then.
    """

    model: MorphableModel
    opt_state: Any
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
        tx: The optimiser.
        blend_steps: Steps over which alpha rises while GRAFTING.
        rise: The alpha schedule.
    """

    tx: optax.GradientTransformation
    blend_steps: int
    rise: Schedule = linear

    def begin(self, model: MorphableModel) -> TrainState:
        """The state before the first step; arrays of the model are copied, since steps consume theirs."""
        own = jax.tree.map(jnp.copy, model)
        layers = len(model.structure.sites)
        zero = jnp.zeros((), jnp.float32)
        return TrainState(own, self.tx.init(own.params), jnp.zeros((), jnp.int32), zero, jnp.zeros(layers, jnp.float32))


def learner(
    settings: TrainingSettings, *, kernel_warmup_steps: int, blend_steps: int, rise: Schedule = linear
) -> Learner:
    """The learner that the settings describe."""
    kind, momentum = settings.optimizer, settings.momentum
    tx = _optimizer(kind, settings.learning_rate, settings.weight_decay, momentum, kernel_warmup_steps)
    return Learner(tx, blend_steps, rise)


@lru_cache(maxsize=32)
def _optimizer(
    kind: str, learning_rate: float, weight_decay: float, momentum: float, warmup_steps: int
) -> optax.GradientTransformation:
    # Cached so that equal settings are the same optimiser object, hence the same compiled step.
    decay = optax.add_decayed_weights(weight_decay)
    if kind == "adamw":
        tx = optax.adamw(learning_rate, weight_decay=weight_decay)
    elif kind == "adam":
        tx = optax.chain(decay, optax.adam(learning_rate))
    else:
        tx = optax.chain(decay, optax.sgd(learning_rate, momentum=momentum))
    return per_kernel(tx, warmup_steps=warmup_steps)


@partial(jax.jit, static_argnums=(1, 2, 3))
def batch_table(key: jax.Array, examples: int, batch_size: int, steps: int) -> Int[Array, "steps batch"]:
    """Which examples each step sees: epochs without replacement, one after the other."""
    epochs = -(-steps * batch_size // examples)
    orders = jax.vmap(lambda epoch_key: jax.random.permutation(epoch_key, examples))(jax.random.split(key, epochs))
    return orders.ravel()[: steps * batch_size].reshape(steps, batch_size)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    learner: Learner, state: TrainState, table: Int[Array, "steps batch"], data: Split, key: jax.Array
) -> TrainState:
    """One step: the host on its loss, TRAINING kernels on theirs, alpha along its schedule, failing kernels set aside.

    Args:
        learner: How to learn.
        state: Consumed: its memory is used for the new one.
        table: Which examples each step sees.
        data: All training examples.
        key: Of the whole run; the step folds its number into it.
    """
    rows = table[state.step]
    inputs, labels = data.inputs[rows], data.labels[rows]
    step_key = jax.random.fold_in(key, state.step)

    def loss(model: MorphableModel) -> tuple[jax.Array, MorphableModel]:
        logits, moved = model.apply(inputs, train=True, key=step_key)
        return cross_entropy(logits, labels).mean(), moved

    def objective(params: dict[str, Any]) -> tuple[jax.Array, MorphableModel]:
        return isolated_loss(loss, state.model.replace(params=params))

    (value, moved), grads = jax.value_and_grad(objective, has_aux=True)(state.model.params)
    moved, grads = recovered(moved, grads)
    updates, opt_state = learner.tx.update(grads, state.opt_state, moved.params)
    params = optax.apply_updates(moved.params, updates)
    return replace(
        state,
        model=moved.replace(params=params, seeds=ramped(moved.seeds, learner.blend_steps, learner.rise)),
        opt_state=opt_state,
        step=state.step + 1,
        loss=state.loss + value.astype(jnp.float32),
        pull=state.pull + pulls(state.model, grads["host"]),
    )


@jax.jit
def evaluate(model: MorphableModel, batches: Split) -> tuple[Float[Array, " batches"], Float[Array, " batches"]]:
    """Mean loss and accuracy of each batch of a stacked split, in evaluation mode."""

    def on_batch(batch: Split) -> tuple[jax.Array, jax.Array]:
        logits = model(batch.inputs)
        return cross_entropy(logits, batch.labels).mean(), (logits.argmax(-1) == batch.labels).mean()

    return jax.lax.map(on_batch, batches)


def credit_loss(model: MorphableModel, batch: Split) -> jax.Array:
    """Mean loss of one held-out batch in training mode; nothing moves, and what is drawn is drawn alike.

    The running averages of a normalisation belong to the network as it has been running. A comparison with
    and without a kernel that used them would favour whichever arm that was, so each arm normalises by its
    own batch. For models without normalisation or dropout this is the loss in evaluation mode.
    """
    logits = model(batch.inputs, train=True, key=jax.random.key(0))
    return cross_entropy(logits, batch.labels).mean()


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Loss of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def pulls(model: MorphableModel, grads: dict[str, jax.Array]) -> Float32[Array, " layers"]:
    """Squared gradient norm of each layer's own parameters; 0 for a layer without any that trains."""
    found = []
    for site in model.structure.sites:
        own = [grad for name, grad in grads.items() if name.rpartition(".")[0] == site.name]
        found.append(sum((jnp.sum(jnp.abs(grad) ** 2) for grad in own), start=jnp.zeros(())))
    return jnp.stack(found).astype(jnp.float32) if found else jnp.zeros(0, jnp.float32)
