"""Pooling windows, separable: one spatial dimension after the other.

Max-pooling carries the place of each window's winner, the first of equal ones and the last NaN, as torch
does. Its gradient goes there, and `return_indices` returns it. With `channel_axis=-1` arrays are (batch, *space,
channels); indices count places in space all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.jax_backend.platform.pooling import Windows, max_along, pick, total, total_along, winners
from esper.jax_backend.platform.precision import widen
from esper.jax_backend.promotion import default_int, is_inexact
from esper.jax_backend.registry import Rule, lowers


def _each_rank(op: str) -> Callable[[Rule], Rule]:
    """Registers the decorated rule for 1, 2 and 3 spatial dimensions; it takes their number first."""

    def register(rule: Rule) -> Rule:
        for rank in (1, 2, 3):
            lowers(op.format(rank))(partial(rule, rank))
        return rule

    return register


@lowers("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
@lowers("aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")
def adaptive_avg_pool(x, output_size, *, channel_axis=1):
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    axes = _space(x, len(output_size), channel_axis)
    out = widen(x)
    if all(count == 1 for count in output_size):
        return (total(out, axes) / math.prod(x.shape[axis] for axis in axes)).astype(x.dtype)
    for axis, count in zip(axes, output_size, strict=True):
        size = x.shape[axis]
        pieces = [(out, _equal(size, count))] if size % count == 0 else _adaptive_pieces(out, axis, count)
        out = jnp.concatenate([total_along(piece, axis, w) / w.size for piece, w in pieces], axis)
    return out.astype(x.dtype)


@lowers("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(x, output_size, *, channel_axis=1):
    """adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor)"""
    axes = _space(x, len(output_size), channel_axis)
    places = _flat_places(x.shape, axes)
    for axis, count in reversed(list(zip(axes, output_size, strict=True))):
        size = x.shape[axis]
        if size % count == 0:
            x, places = _max_along(x, places, axis, _equal(size, count))
            continue
        pieces = zip(_adaptive_pieces(x, axis, count), _adaptive_pieces(places, axis, count), strict=True)
        found = [_max_along(piece, place, axis, w) for (piece, w), (place, _) in pieces]
        x, places = (jnp.concatenate(parts, axis) for parts in zip(*found, strict=True))
    return x, places


@_each_rank("aten.avg_pool{}d.default")
def avg_pool(
    rank,
    x,
    kernel_size,
    stride=(),
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    *,
    channel_axis=1,
):
    """avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor"""  # noqa: E501
    axes = _space(x, rank, channel_axis)
    windows = _windows([x.shape[axis] for axis in axes], kernel_size, stride, padding, 1, ceil_mode)
    out, divisor = widen(x), 1
    for axis, w in zip(axes, windows, strict=True):
        counts = _window_counts(x.shape[axis], w, count_include_pad)
        divisor = divisor * counts.reshape(-1, *[1] * (x.ndim - axis - 1))
        out = total_along(out, axis, w)
    divisor = jnp.asarray(divisor if divisor_override is None else divisor_override, out.dtype)
    return (out / divisor if is_inexact(x) else lax.div(*jnp.broadcast_arrays(out, divisor))).astype(x.dtype)


@_each_rank("aten.max_pool{}d.default")
def max_pool(rank, x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False, *, channel_axis=1):
    """max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> Tensor"""  # noqa: E501
    axes = _space(x, rank, channel_axis)
    windows = _windows([x.shape[axis] for axis in axes], kernel_size, stride, padding, dilation, ceil_mode)
    for axis, w in reversed(list(zip(axes, windows, strict=True))):
        x = max_along(x, axis, w)
    return x


@_each_rank("aten.max_pool{}d_with_indices.default")
def max_pool_with_indices(rank, x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False, *, channel_axis=1):
    """max_pool2d_with_indices(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)"""  # noqa: E501
    axes = _space(x, rank, channel_axis)
    windows = _windows([x.shape[axis] for axis in axes], kernel_size, stride, padding, dilation, ceil_mode)
    places = _flat_places(x.shape, axes)
    for axis, w in reversed(list(zip(axes, windows, strict=True))):
        x, places = _max_along(x, places, axis, w)
    return x, places


def _adaptive_pieces(x, axis, count):
    """What each of `count` windows along `axis` covers; they overlap where the size is no multiple of `count`."""
    size = x.shape[axis]
    bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return [(lax.slice_in_dim(x, start, end, axis=axis), _equal(end - start, 1)) for start, end in bounds]


def _equal(size, count):
    """So many windows without gaps or overlap."""
    return Windows(size // count, size // count, 0, 1, count)


def _flat_places(shape, axes):
    """For each element its place in space, dimensions `axes`, as torch's indices count."""
    space = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return jnp.broadcast_to(lax.iota(default_int(), math.prod(space)).reshape(space), shape)


def _max_along(x, places, axis, w):
    return max_along(x, axis, w), pick(places, winners(x, axis, w), axis, w)


def _space(x, rank, channel_axis):
    """The spatial dimensions; an input without a batch has its channels first."""
    first = x.ndim - rank if channel_axis == 1 else 1
    return range(first, first + rank)


def _window_counts(size, w: Windows, include_padding: bool):
    """How many elements each window averages over: padding counts if asked for, what ceil_mode adds never does."""
    start = np.arange(w.count) * w.stride - w.padding
    end = np.minimum(start + w.size, size + w.padding)
    return end - start if include_padding else np.minimum(end, size) - np.maximum(start, 0)


def _windows(sizes: Sequence[int], kernel_size, stride, padding, dilation, ceil_mode) -> list[Windows]:
    rank = len(sizes)
    kernel = _spread(kernel_size, rank)
    steps = _spread(stride, rank) if stride else kernel
    specs = zip(sizes, kernel, steps, _spread(padding, rank), _spread(dilation, rank), strict=True)
    return [Windows(k, s, p, d, _window_count(size, k, s, p, d, ceil_mode)) for size, k, s, p, d in specs]


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
