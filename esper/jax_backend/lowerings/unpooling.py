"""Max-pooling of drawn windows, and its inverse by index (ATen's FractionalMaxPool2d.cpp, MaxUnpooling.cpp)."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.promotion import default_int
from esper.jax_backend.registry import lowers


@lowers("aten.fractional_max_pool2d.default", "aten.fractional_max_pool3d.default")
def fractional_max_pool(x, kernel_size, output_size, random_samples):
    """fractional_max_pool2d(Tensor self, int[2] kernel_size, int[2] output_size, Tensor random_samples) -> (Tensor, Tensor)"""  # noqa: E501
    rank = len(kernel_size)
    planes, space = x.shape[: x.ndim - rank], x.shape[x.ndim - rank :]
    flat = x.reshape(*planes, math.prod(space))
    given = random_samples if len(planes) == 2 else random_samples[0]  # an input without a batch takes the first
    samples = lax.stop_gradient(given).reshape(*planes, rank).astype(x.dtype)
    drawn = samples[..., ::-1] if rank == 2 else samples  # the width comes first in 2-D, the depth in 3-D
    starts = [_starts(drawn[..., d], space[d], output_size[d], kernel_size[d]) for d in range(rank)]
    fixed, best, winner = lax.stop_gradient(flat), None, None
    for tap in _taps(kernel_size):
        place = jnp.zeros((), default_int())
        for d, start in enumerate(starts):
            along = (start + tap[d]).reshape(*planes, *(-1 if other == d else 1 for other in range(rank)))
            place = place * space[d] + along
        place = place.reshape(*planes, math.prod(output_size))
        value = jnp.take_along_axis(fixed, place, -1)
        wins = True if best is None else (value > best) | jnp.isnan(value)
        best = value if best is None else jnp.where(wins, value, best)
        winner = place if winner is None else jnp.where(wins, place, winner)
    out = jnp.take_along_axis(flat, winner, -1)
    return out.reshape(*planes, *output_size), winner.reshape(*planes, *output_size)


def _starts(sample, size, count, kernel):
    """Where the windows along one dimension begin, (planes, count): the last one ends with the dimension."""
    last = jnp.full((*sample.shape, 1), size - kernel, default_int())
    if count == 1:
        return last
    step = jnp.asarray((size - kernel) / (count - 1), sample.dtype)
    sample = sample[..., None]
    drawn = jnp.trunc((jnp.arange(count - 1, dtype=sample.dtype) + sample) * step) - jnp.trunc(sample * step)
    return jnp.concatenate([drawn.astype(default_int()), last], -1)


def _taps(kernel_size):
    if not kernel_size:
        return [()]
    return [(first, *rest) for first in range(kernel_size[0]) for rest in _taps(kernel_size[1:])]


@lowers("aten.max_unpool2d.default", "aten.max_unpool3d.default")
def max_unpool(x, indices, output_size, stride=None, padding=None):
    """max_unpool2d(Tensor self, Tensor indices, SymInt[2] output_size) -> Tensor"""
    planes = x.shape[: x.ndim - len(output_size)]
    rows, space = math.prod(planes), math.prod(output_size)
    values, places = (t.reshape(rows, math.prod(t.shape[len(planes) :])) for t in (x, indices))
    return _put(values, places, space).reshape(*planes, *output_size)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _put(values: jax.Array, places: jax.Array, size: int) -> jax.Array:
    """Rows of `size` zeros with `values` at `places`, where the last of equal places wins."""
    return _rows(values, places, size).set(values, mode="drop")


@_put.defjvp
def _put_jvp(size, primals, tangents):
    # In torch each value gets the gradient of its place, also where it did not win.
    values, places = primals
    return _put(values, places, size), _rows(values, places, size).add(tangents[0], mode="drop")


def _rows(values, places, size):
    rows = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], size), values.dtype).at[rows, places]
