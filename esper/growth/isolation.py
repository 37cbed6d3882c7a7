"""Isolation by shadow loss: seeds train on the real loss while the host trains as if they were not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.model import MorphableModel

Aux = TypeVar("Aux")
Loss = Callable[[MorphableModel], tuple[jax.Array, Aux]]


def isolated_loss(loss: Loss[Aux], model: MorphableModel) -> tuple[jax.Array, Aux]:
    """The loss to differentiate in a training step of a model that may hold TRAINING seeds.

    The value is the model's own loss. The gradient is that of `loss(model) + loss(model.shadow())`: the
    host's is bit-equal to the one without TRAINING seeds, a TRAINING kernel's is that of the loss with the
    kernel on and everything else frozen. Without kernels the shadow pass is no part of the program; with
    kernels it runs only while a seed is TRAINING, which is data.

    Args:
        loss: From a model to (loss, auxiliary output); called twice, so it must hold its own key.
        model: The model.

    Returns:
        The model's loss and its auxiliary output; nothing of the shadow pass.
    """
    value, aux = loss(model)
    if not model.structure.kernels:
        return value, aux
    training = jnp.any(model.seeds.training())
    shadow = lax.cond(training, lambda m: loss(m.shadow())[0], lambda m: jnp.zeros_like(value), model)
    return value + _gradient_only(shadow), aux


@jax.custom_jvp
def _gradient_only(value: jax.Array) -> jax.Array:
    """0 with the derivative of `value`; `value - stop_gradient(value)` would let a NaN through."""
    return jnp.zeros_like(value)


@_gradient_only.defjvp
def _gradient_only_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(primals[0]), tangents[0]
