"""Isolation by shadow loss: seeds train on the real loss while the host trains as if they were not there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from esper.errors import ArgumentError
from esper.jax_backend.linear import linear
from esper.jax_backend.model import MorphableModel

Aux = TypeVar("Aux")
Loss = Callable[[MorphableModel], tuple[jax.Array, Aux]]


def isolated_loss(loss: Loss[Aux], model: MorphableModel, *, race: int = 1) -> tuple[jax.Array, Aux]:
    """The loss to differentiate in a training step of a model that may hold TRAINING seeds.

    The value is the model's own loss. The gradient is that of `loss(model) + loss(model.shadow())`: the
    host's is bit-equal to the one without TRAINING seeds, a TRAINING kernel's is that of the loss with the
    kernel on and everything else frozen. Without kernels the shadow pass is no part of the program; with
    kernels it runs only while a seed is TRAINING, which is data. Differentiate once: the shadow's gradient counts as
    a constant in derivatives of second order.

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
    arms = min(race, len(model.structure.kernels))
    if not arms:
        return loss(model)
    # Only kernels move in the shadow pass: said here, the branch has no gradient of the host to fill with zeros.
    frozen = jax.tree.map(lax.stop_gradient, model)

    def shadow(kernels: Any) -> jax.Array:
        model = frozen.replace(params={**frozen.params, "kernels": kernels})
        if arms == 1:
            return loss(model.shadow())[0]
        return jax.vmap(lambda only: loss(model.shadow(only))[0])(_racers(model.seeds.training(), arms)).sum()

    training = jnp.any(frozen.seeds.training())
    pull = lax.cond(training, jax.grad(shadow), partial(jax.tree.map, jnp.zeros_like), frozen.params["kernels"])
    pull = lax.stop_gradient(pull)
    kernels, shadowed = linear(_beside, _with_shadow, (training, pull), model.params["kernels"])
    value, aux = loss(model.replace(params={**model.params, "kernels": kernels}))
    return value + _gradient_only(shadowed.astype(value.dtype)), aux


def _beside(given: tuple[jax.Array, Any], kernels: Any) -> tuple[Any, jax.Array]:
    """The kernels, and how they move the shadow pass's loss."""
    moved = jax.tree.map(lambda pull, leaf: jnp.sum(pull * leaf).real, given[1], kernels)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(moved))
    return kernels, sum((part.astype(dtype) for part in jax.tree.leaves(moved)), start=jnp.zeros((), dtype))


def _with_shadow(given: tuple[jax.Array, Any], cotangents: tuple[Any, jax.Array]) -> Any:
    """Both gradients of the kernels; where none trains the first is handed on as it is."""
    (training, pull), (own, weight) = given, cotangents

    def both(own: Any) -> Any:
        return jax.tree.map(lambda leaf, shadow: leaf + (weight * shadow).astype(leaf.dtype), own, pull)

    return lax.cond(training, both, lambda own: own, own)


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
