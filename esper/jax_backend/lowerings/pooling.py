"""Pooling windows, separable: one spatial dimension after the other.

Max-pooling carries the place of each window's winner, the first of equal ones and the last NaN, as torch
does. Its gradient goes there, and `return_indices` returns it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.jax_backend.platform.precision import widen
from esper.jax_backend.promotion import default_int, is_inexact
from esper.jax_backend.registry import Rule, lowers


class _Windows(NamedTuple):
    """The windows along one dimension: window o covers o * stride - padding + dilation * [0, size)."""

    size: int
    stride: int
    padding: int
    dilation: int
    count: int


def _each_rank(op: str) -> Callable[[Rule], Rule]:
    """Registers the decorated rule for 1, 2 and 3 spatial dimensions; it takes their number first."""

    def register(rule: Rule) -> Rule:
        for rank in (1, 2, 3):
            lowers(op.format(rank))(partial(rule, rank))
        return rule

    return register


@lowers("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
@lowers("aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")
def adaptive_avg_pool(x, output_size):
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    out = widen(x)
    for axis, count in enumerate(output_size, start=x.ndim - len(output_size)):
        out = _adaptive(out, axis, count, partial(jnp.mean, axis=axis + 1), partial(jnp.mean, axis=axis))
    return out.astype(x.dtype)


@lowers("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(x, output_size):
    """adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor)"""
    rank = len(output_size)
    places = _flat_places(x.shape, rank)
    for axis in reversed(range(x.ndim - rank, x.ndim)):
        size, count = x.shape[axis], output_size[axis - x.ndim + rank]
        if size % count == 0:
            x, places = _max_along(x, places, axis, _Windows(size // count, size // count, 0, 1, count))
            continue
        pieces = [
            _max_along(*(lax.slice_in_dim(t, start, end, axis=axis) for t in (x, places)), axis, _whole(end - start))
            for start, end in _adaptive_bounds(size, count)
        ]
        x, places = (jnp.concatenate(parts, axis) for parts in zip(*pieces, strict=True))
    return x, places


@_each_rank("aten.avg_pool{}d.default")
def avg_pool(
    rank, x, kernel_size, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor"""  # noqa: E501
    first = x.ndim - rank
    windows = _windows(x.shape[first:], kernel_size, stride, padding, 1, ceil_mode)
    total, divisor = widen(x), 1
    for axis, w in enumerate(windows, start=first):
        total = functools.reduce(jnp.add, _taps(total, axis, w, 0))
        counts = _window_counts(x.shape[axis], w, count_include_pad)
        divisor = divisor * counts.reshape(-1, *[1] * (x.ndim - axis - 1))
    divisor = jnp.asarray(divisor if divisor_override is None else divisor_override, total.dtype)
    return (total / divisor if is_inexact(x) else lax.div(*jnp.broadcast_arrays(total, divisor))).astype(x.dtype)


@_each_rank("aten.max_pool{}d.default")
def max_pool(rank, x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
    """max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> Tensor"""  # noqa: E501
    first = x.ndim - rank
    windows = _windows(x.shape[first:], kernel_size, stride, padding, dilation, ceil_mode)
    for axis in reversed(range(first, x.ndim)):
        x = _max(x, axis, windows[axis - first])
    return x


@_each_rank("aten.max_pool{}d_with_indices.default")
def max_pool_with_indices(rank, x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
    """max_pool2d_with_indices(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)"""  # noqa: E501
    first = x.ndim - rank
    windows = _windows(x.shape[first:], kernel_size, stride, padding, dilation, ceil_mode)
    places = _flat_places(x.shape, rank)
    for axis in reversed(range(first, x.ndim)):
        x, places = _max_along(x, places, axis, windows[axis - first])
    return x, places


def _adaptive(x, axis, count, of_equal, of_piece):
    """Reduces `count` windows along `axis`; they overlap where the size is no multiple of `count`."""
    size = x.shape[axis]
    if count == 1 or size % count == 0:
        return of_equal(x.reshape(*x.shape[:axis], count, size // count, *x.shape[axis + 1 :]))
    pieces = [of_piece(lax.slice_in_dim(x, start, end, axis=axis)) for start, end in _adaptive_bounds(size, count)]
    return jnp.stack(pieces, axis)


def _adaptive_bounds(size, count):
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _first_taps(w: _Windows):
    """For each window, its first tap that is not padding."""
    starts = np.arange(w.count) * w.stride - w.padding
    return np.maximum(-(starts // w.dilation), 0)


def _flat_places(shape, rank):
    """For each element its place among the last `rank` dimensions, as torch's indices count."""
    space = shape[len(shape) - rank :]
    return jnp.broadcast_to(lax.iota(default_int(), math.prod(space)).reshape(space), shape)


def _lowest(dtype):
    return -jnp.inf if is_inexact(dtype) else jnp.iinfo(dtype).min


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _max(x: jax.Array, axis: int, w: _Windows) -> jax.Array:
    """The largest of each window along `axis`."""
    return _search(x, axis, w)[0]


@_max.defjvp
def _max_jvp(axis: int, w: _Windows, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    best, winner = _search(*primals, axis, w)
    return best, _pick(*tangents, winner, axis, w)


def _max_along(x, places, axis, w):
    return _max(x, axis, w), _pick(places, _search(lax.stop_gradient(x), axis, w)[1], axis, w)


def _along(vector, axis, ndim):
    return vector.reshape(-1, *[1] * (ndim - axis - 1))


def _pick(x, winner, axis, w):
    """What stands at the winning taps: linear in x, so its transpose is the gradient of max-pooling."""
    zero = jnp.zeros((), x.dtype)
    return sum((jnp.where(winner == number, tap, zero) for number, tap in enumerate(_taps(x, axis, w, 0))), start=zero)


def _search(x: jax.Array, axis: int, w: _Windows) -> tuple[jax.Array, jax.Array]:
    """The largest of each window along `axis`, and which tap it is."""
    taps = _taps(x, axis, w, _lowest(x.dtype))
    best = jnp.full(taps[0].shape, _lowest(x.dtype), x.dtype)
    winner = jnp.broadcast_to(_along(_first_taps(w).astype(np.int32), axis, x.ndim), taps[0].shape)
    for number, tap in enumerate(taps):
        wins = (tap > best) | (tap != tap)  # a NaN wins
        best, winner = jnp.where(wins, tap, best), jnp.where(wins, number, winner)
    return best, winner


def _taps(x: jax.Array, axis: int, w: _Windows, fill: float) -> list[jax.Array]:
    """For each place in the windows along `axis`, the elements that stand there; padding is `fill`."""
    reach = (w.count - 1) * w.stride + 1
    needed = reach + (w.size - 1) * w.dilation
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (w.padding, needed - w.padding - x.shape[axis], 0)
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), config)
    return [
        lax.slice_in_dim(padded, tap * w.dilation, tap * w.dilation + reach, w.stride, axis) for tap in range(w.size)
    ]


def _whole(size):
    return _Windows(size, 1, 0, 1, 1)


def _window_counts(size, w: _Windows, include_padding: bool):
    """How many elements each window averages over: padding counts if asked for, what ceil_mode adds never does."""
    start = np.arange(w.count) * w.stride - w.padding
    end = np.minimum(start + w.size, size + w.padding)
    return end - start if include_padding else np.minimum(end, size) - np.maximum(start, 0)


def _windows(sizes: Sequence[int], kernel_size, stride, padding, dilation, ceil_mode) -> list[_Windows]:
    rank = len(sizes)
    kernel = _spread(kernel_size, rank)
    steps = _spread(stride, rank) if stride else kernel
    specs = zip(sizes, kernel, steps, _spread(padding, rank), _spread(dilation, rank), strict=True)
    return [_Windows(k, s, p, d, _window_count(size, k, s, p, d, ceil_mode)) for size, k, s, p, d in specs]


def _window_count(size, kernel, stride, padding, dilation, ceil_mode):
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count  # no window begins in the far padding


def _spread(value, rank):
    """A number, or a sequence of one, for every spatial dimension."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * rank if len(value) == 1 else value
