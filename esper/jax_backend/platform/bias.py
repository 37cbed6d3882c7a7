"""Biases and scales, their gradients as matrix-vector products.

Autodiff's gradient of a broadcast vector is a column sum, which XLA fuses with whatever makes the
cotangent: slow, and added up in an order that depends on the surroundings. A product with ones reads the
finished cotangent, so a layer's bias learns the same, bit for bit, whatever grows beside the layer.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.precision import PRECISION, accumulator


def add_bias(x: jax.Array, bias: jax.Array, axis: int) -> jax.Array:
    """`x + bias`, the dimensions of `bias` standing at `axis` of `x`; in the dtype of `x`."""
    return x + _like(x, bias, axis)


def scale(x: jax.Array, weight: jax.Array, axis: int) -> jax.Array:
    """`x * weight`, the dimensions of `weight` standing at `axis` of `x`; in the dtype of `x`."""
    return x * _like(x, weight, axis)


def _like(x: jax.Array, vector: jax.Array, axis: int) -> jax.Array:
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + vector.ndim :])
    return _spread(vector.astype(x.dtype).ravel(), before, after).reshape(x.shape)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _spread(vector: jax.Array, before: int, after: int) -> jax.Array:
    """The vector of length n, shape (before, n, after)."""
    return jnp.broadcast_to(vector[:, None], (before, vector.size, after))


@_spread.defjvp
def _spread_jvp(
    before: int, after: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (vector,), (dot,) = primals, tangents
    ones = jnp.ones((1, before, after), vector.dtype)
    wide = accumulator(vector.dtype)
    # Its transpose is the product of the cotangent with ones, over both outer dimensions.
    spread = lax.dot_general(
        dot[:, None], ones, (((1,), (0,)), ((), ())), precision=PRECISION, preferred_element_type=wide
    )
    return _spread(vector, before, after), jnp.moveaxis(spread, 0, 1).astype(vector.dtype)
