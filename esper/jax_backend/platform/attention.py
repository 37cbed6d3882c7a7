"""Softmax and product with the values as one function, its derivative in closed form.

Autodiff's derivative of the softmax sums over the weights and their cotangents, both as large as rows times keys.
That sum is also the output times its own cotangent, which are as large as the rows: the large arrays are read once
less. The weights are kept for the backward, not made again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from esper.jax_backend.linear import linear
from esper.jax_backend.platform.fence import fenced
from esper.jax_backend.platform.precision import contract
from esper.jax_backend.platform.softmax import softmax


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def attend(logits: jax.Array, value: jax.Array, keep: jax.Array | None, p: float) -> jax.Array:
    """softmax(logits) @ value, in the dtype of the logits. A row of nothing but -inf gives zeros, and zero gradients.

    Args:
        logits: (..., rows, keys)
        value: (..., keys, size), the same dimensions before the last two.
        keep: Which weights stay, of the shape of the logits; None: all of them.
        p: The probability with which the others were dropped.
    """
    return _attend(logits, value, keep, p)[0]


# Not fenced, the weights would be made again in the backward, exponentials and all, by whatever loop reads them there.
@partial(fenced, static=(3,))
def _attend(logits: jax.Array, value: jax.Array, keep: jax.Array | None, p: float) -> tuple[jax.Array, jax.Array]:
    weights = softmax(logits)[0]
    return _product(_dropped(weights, keep, p).astype(value.dtype), value, -1, -2).astype(logits.dtype), weights


@attend.defjvp
def _attend_jvp(p: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    logits, value, keep = primals
    out, weights = _attend(logits, value, keep, p)
    return out, linear(partial(_tangent, p), partial(_transposed, p), (weights, value, keep, out), tangents[:2])


def _tangent(p: float, given: Any, of: Any) -> jax.Array:
    (weights, value, keep, out), (logits_dot, value_dot) = given, of
    dot = weights * (logits_dot - jnp.sum(weights * logits_dot, -1, keepdims=True))
    by_weights = _product(_dropped(dot, keep, p).astype(value.dtype), value, -1, -2)
    by_value = _product(_dropped(weights, keep, p).astype(value.dtype), value_dot, -1, -2)
    return (by_weights + by_value).astype(out.dtype)


@partial(fenced, static=(0,))
def _transposed(p: float, given: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights, value, keep, out = given
    narrow = cotangent.astype(value.dtype)
    of_weights = _dropped(_product(narrow, value, -1, -1).astype(out.dtype), keep, p)
    of_logits = weights * (of_weights - jnp.sum(cotangent * out, -1, keepdims=True))
    of_value = _product(_dropped(weights, keep, p).astype(value.dtype), narrow, -2, -2)
    return of_logits, of_value.astype(value.dtype)


def _product(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    """The sum over a dimension of each, the dimensions before the last two side by side."""
    batch = range(a.ndim - 2)
    return contract(a, b, ((over_a % a.ndim,), (over_b % b.ndim,)), (batch, batch))


def _dropped(weights: jax.Array, keep: jax.Array | None, p: float) -> jax.Array:
    if keep is None:
        return weights
    return jnp.where(keep, weights * (0 if p == 1 else 1 / (1 - p)), 0)
