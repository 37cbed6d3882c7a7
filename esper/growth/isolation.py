"""Isolation by shadow loss: seeds train on the real loss while the host trains as if they were not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from esper.errors import ArgumentError
from esper.jax_backend.model import MorphableModel

Aux = TypeVar("Aux")
Loss = Callable[[MorphableModel], tuple[jax.Array, Aux]]


def isolated_loss(loss: Loss[Aux], model: MorphableModel, *, race: int = 1) -> tuple[jax.Array, Aux]:
    """The loss to differentiate in a training step of a model that may hold TRAINING seeds.

    The value is the model's own loss. The gradient is that of `loss(model) + loss(model.shadow())`: the
    host's is bit-equal to the one without TRAINING seeds, a TRAINING kernel's is that of the loss with the
    kernel on and everything else frozen. Without kernels the shadow pass is no part of the program; with
    kernels it runs only while a seed is TRAINING, which is data.

    TRAINING seeds are on together, and each learns to add to the others. In a race each is on alone: the first
    `race` of them, in order of layer and seed, in one pass. Those beyond wait: their gradient is 0 until one of the
    first is no longer TRAINING.

    Args:
        loss: From a model to (loss, auxiliary output); called twice, so it must hold its own key.
        model: The model.
        race: How many seeds may train alone at a time; 1 for all of them together. An arm of the race costs a forward
            and a backward, whether there is a seed for it or not, but never more arms than kernels.

    Returns:
        The model's loss and its auxiliary output; nothing of the shadow pass.

    Raises:
        ArgumentError: `race` is below 1.
    """
    if race < 1:
        raise ArgumentError(f"race is how many seeds train alone at a time, at least 1, not {race}")
    value, aux = loss(model)
    arms = min(race, len(model.structure.kernels))
    if not arms:
        return value, aux

    def shadow(model: MorphableModel) -> jax.Array:
        if arms == 1:
            return loss(model.shadow())[0]
        return jax.vmap(lambda only: loss(model.shadow(only))[0])(_racers(model.seeds.training(), arms)).sum()

    training = jnp.any(model.seeds.training())
    shadowed = lax.cond(training, shadow, lambda m: jnp.zeros_like(value), model)
    return value + _gradient_only(shadowed), aux


def _racers(training: Bool[Array, "layers seeds"], arms: int) -> Bool[Array, "arms layers seeds"]:
    """For each arm the one seed that it turns on; none for arms beyond the last TRAINING seed."""
    rank = jnp.cumsum(training.ravel()).reshape(training.shape)
    return training & (rank == jnp.arange(1, arms + 1)[:, None, None])


@jax.custom_jvp
def _gradient_only(value: jax.Array) -> jax.Array:
    """0 with the derivative of `value`; `value - stop_gradient(value)` would let a NaN through."""
    return jnp.zeros_like(value)


@_gradient_only.defjvp
def _gradient_only_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(primals[0]), tangents[0]
