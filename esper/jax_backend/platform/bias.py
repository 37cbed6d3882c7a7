"""Biases and scales, and the sums over all other dimensions that are their gradients.

XLA fuses the sum over the rows of a matrix with whatever makes and reads it: slow, and added up in an order that
depends on the surroundings. `sums` says the order itself: slices are added element by element, the few rows that
remain are a product with ones. So a layer's bias learns the same, bit for bit, whatever grows beside the layer.
"""

from __future__ import annotations

import functools
import math
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.linear import linear
from esper.jax_backend.platform.fence import fenced
from esper.jax_backend.platform.precision import contract, widen

_SLICES = 8  # added at a time: more make longer loops, not faster ones
_SMALL = 2**13  # elements, for which one product is enough
_ROWS = 128  # in one product: it adds them up one after the other, and the error grows with their number


def add_bias(x: jax.Array, bias: jax.Array, axis: int) -> jax.Array:
    """`x + bias`, the dimensions of `bias` standing at `axis` of `x`; in the dtype of `x`."""
    return x + _like(x, bias, axis)


def scale(x: jax.Array, weight: jax.Array, axis: int) -> jax.Array:
    """`x * weight`, the dimensions of `weight` standing at `axis` of `x`; in the dtype of `x`."""
    return x * _like(x, weight, axis)


def sums(x: jax.Array, over: tuple[int, ...]) -> jax.Array:
    """The sums of `x` over some dimensions, which are kept with size 1."""
    lead, before, kept, after = _view(x.shape, over)
    total = _over_rows(x.reshape(lead, before, kept * after))
    total = _over_columns(total.reshape(lead * kept, after))
    return total.reshape([1 if axis in over else size for axis, size in enumerate(x.shape)])


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
    spread = partial(_spread, before=before, after=after)
    return spread(*primals), linear(lambda _, dot: spread(dot), _gathered, (), *tangents)


def _gathered(_: tuple[()], cotangent: jax.Array) -> jax.Array:
    return sums(widen(cotangent), (0, 2)).ravel().astype(cotangent.dtype)


def _view(shape: tuple[int, ...], over: tuple[int, ...]) -> tuple[int, ...]:
    """Four dimensions instead of those of `shape`: kept, summed, kept, summed."""
    runs = [
        (summed, math.prod(shape[a] for a in axes)) for summed, axes in groupby(range(len(shape)), over.__contains__)
    ]
    sizes = [size for _, size in runs]
    missing = 1 if runs[0][0] else 2 if len(runs) == 2 else 0
    return (*[1] * missing, *sizes, *[1] * (4 - missing - len(sizes)))


def _over_rows(x: jax.Array) -> jax.Array:
    """(lead, rows, columns) to (lead, columns)."""
    if x.shape[1] == 1:
        return x[:, 0]
    return _few_rows(_folded(x, 1))


@fenced
def _few_rows(x: jax.Array) -> jax.Array:
    lead, rows, columns = x.shape
    few = _divisor(rows, _ROWS) if _is_known(rows) else rows
    parts = _by_ones(x.reshape(lead * (rows // few), few, columns))
    # Not by another product: XLA compiles each of these by itself, and equal reductions once.
    return jnp.sum(parts.reshape(lead, rows // few, columns), axis=1)


def _by_ones(x: jax.Array) -> jax.Array:
    """(lead, rows, columns) to (lead, columns)."""
    if x.shape[0] == 1:
        return contract(jnp.ones(x.shape[1], x.dtype), x[0], ((0,), (0,)))[None]
    return contract(jnp.ones(x.shape[:2], x.dtype), x, ((1,), (1,)), ((0,), (0,)))


def _over_columns(x: jax.Array) -> jax.Array:
    """(rows, columns) to (rows,)."""
    if x.shape[1] == 1:
        return x[:, 0]
    x = _folded(x, 1)
    return contract(x, jnp.ones((x.shape[1],), x.dtype), ((1,), (0,)))


def _folded(x: jax.Array, axis: int) -> jax.Array:
    """Equal slices along `axis` of a large array, added up."""
    size = x.shape[axis]
    count = _divisor(size, _SLICES) if _is_known(x.size) and x.size > _SMALL else 1
    # Rows far apart would be as many streams to read from; parts of the last dimension are to be contiguous.
    last = axis == x.ndim - 1
    split = (count, size // count) if last else (size // count, count)
    parts = x.reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])
    return functools.reduce(
        jnp.add, (lax.index_in_dim(parts, i, axis + (not last), keepdims=False) for i in range(count))
    )


def _is_known(size: Any) -> bool:
    """Whether a size is a number; `jax.export` has symbolic ones."""
    return isinstance(size, int)


def _divisor(size: int, most: int) -> int:
    return max(count for count in range(1, most + 1) if size % count == 0)
