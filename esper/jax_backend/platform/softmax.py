"""Softmax, and what the negative log-likelihood reads of a log-softmax, of which no array is made for it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.linear import linear


def entries(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Of each row of `x` along `axis` the entry at `index`, which has the other dimensions; 0 where there is none.

    Read by a gather, which touches one entry of a row. The gradient compares all places of a row with its index:
    unlike a scatter, XLA fuses that with what else makes the gradient.
    """
    size = x.shape[axis]
    return linear(partial(_gathered, axis, size), partial(_placed, axis, size), jnp.expand_dims(index, axis), x)


def shifted(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """`x` less the largest of each row, and the logarithm of the sum of its exponentials: log-softmax's two terms."""
    x = x - lax.stop_gradient(jnp.max(x, axis, keepdims=True, initial=-jnp.inf))
    return x, jnp.log(jnp.sum(jnp.exp(x), axis))


def softmax(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax and log-sum-exp over the last dimension, which is kept; a row of nothing but -inf gives zeros."""
    largest = lax.stop_gradient(jnp.max(x, -1, keepdims=True, initial=-jnp.inf))
    largest = jnp.where(largest == -jnp.inf, 0, largest)
    powers = jnp.exp(x - largest)
    total = jnp.sum(powers, -1, keepdims=True)
    return powers / jnp.where(total == 0, 1, total), jnp.log(total) + largest


def _gathered(axis: int, size: int, index: jax.Array, x: jax.Array) -> jax.Array:
    known = (index >= 0) & (index < size)
    found = jnp.take_along_axis(x, jnp.where(known, index, 0), axis)
    return jnp.squeeze(jnp.where(known, found, 0), axis)


def _placed(axis: int, size: int, index: jax.Array, cotangent: jax.Array) -> jax.Array:
    shape = (*index.shape[:axis], size, *index.shape[axis + 1 :])
    there = index == lax.broadcasted_iota(index.dtype, shape, axis)
    return jnp.where(there, jnp.expand_dims(cotangent, axis), 0)
