"""What each output of a convolution sees, laid side by side, channels last; and the way back, which adds up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.convolution.spec import Spec


def gather(x: jax.Array, spec: Spec, taps_last: bool, by_tap: bool = False) -> jax.Array:
    """The patches of `x`.

    Args:
        x: Channels last.
        spec: What sees it.
        taps_last: Whether they are in the weight's order.
        by_tap: Whether every tap is a piece by itself, and not one dimension taken after the other: more pieces
            take longer to compile, and are quicker to put together while they are cached and wide.

    Returns:
        (batch, *results, taps * channels), or channels * taps if `taps_last`.
    """
    if tiles(spec):
        cut = _cut(x, spec)
        return _flat(cut.swapaxes(-1, -2) if taps_last else cut)
    if by_tap and not taps_last:
        return jnp.concatenate(list(shifted(x, spec)), axis=-1)
    x = padded(x, spec)
    first = 1 + spec.rank + taps_last  # of the axes of taps
    for axis in range(spec.rank, 0, -1):
        starts = range(0, spec.reach[axis - 1] + 1, spec.dilation[axis - 1])
        x = jnp.stack([_along(x, axis, start, spec) for start in starts], axis=first)
    return x.reshape(x.shape[0], *spec.results, -1)


def scatter(patches: jax.Array, spec: Spec) -> jax.Array:
    """Every patch, (batch, *results, channels, taps), added to where it was seen."""
    if tiles(spec):
        return _paste(patches.swapaxes(-1, -2), spec)
    sizes = list(zip(spec.pads, spec.stride, spec.space, spec.spread, strict=True))
    placed = []
    for tap, shift in enumerate(_shifts(spec)):
        places = [(t - low, n - (t - low) - o, s - 1) for t, ((low, _), s, n, o) in zip(shift, sizes, strict=True)]
        placed.append(pad(patches[..., tap], places))
    return reduce(add, placed)


def shifted(x: jax.Array, spec: Spec) -> Iterator[jax.Array]:
    """What each tap meets, in the weight's order, (batch, *results, ...)."""
    x = padded(x, spec)
    for shift in _shifts(spec):
        sizes = zip(shift, spec.spread, spec.stride, strict=True)
        yield x[:, *(slice(t, t + size, s) for t, size, s in sizes)]


def _along(x: jax.Array, axis: int, start: int, spec: Spec) -> jax.Array:
    return lax.slice_in_dim(x, start, start + spec.spread[axis - 1], spec.stride[axis - 1], axis)


def padded(x: jax.Array, spec: Spec) -> jax.Array:
    """`x` with its zeros around it, finished before it is read once for each tap."""
    if not any(map(any, spec.pads)):
        return x
    return lax.optimization_barrier(pad(x, [(low, high, 0) for low, high in spec.pads]))


def pad(x: jax.Array, places: Sequence[tuple[Any, Any, int]], axis: int = 1) -> jax.Array:
    """Zeros around and between the elements of axes from `axis` on; a negative number leaves elements out."""
    if not any(map(any, places)):
        return x
    rest = x.ndim - len(places) - axis
    return lax.pad(x, jnp.zeros((), x.dtype), [*[(0, 0, 0)] * axis, *places, *[(0, 0, 0)] * rest])


def tiles(spec: Spec) -> bool:
    """Whether windows neither overlap nor leave gaps."""
    return spec.kernel == spec.stride and not any(map(any, spec.pads)) and set(spec.dilation) == {1}


def _shifts(spec: Spec) -> Iterator[tuple[int, ...]]:
    """Where each tap starts in the padded input."""
    return itertools.product(*(range(0, r + 1, d) for r, d in zip(spec.reach, spec.dilation, strict=True)))


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _cut(x: jax.Array, spec: Spec) -> jax.Array:
    """(batch, *results, taps, channels)."""
    rank, batch, channels = spec.rank, x.shape[0], x.shape[-1]
    x = x[:, *(slice(0, o * k) for o, k in zip(spec.results, spec.kernel, strict=True))]
    x = x.reshape(batch, *(size for pair in zip(spec.results, spec.kernel, strict=True) for size in pair), channels)
    x = x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return x.reshape(batch, *spec.results, -1, channels)


def _paste(patches: jax.Array, spec: Spec) -> jax.Array:
    rank, batch, channels = spec.rank, patches.shape[0], patches.shape[-1]
    x = patches.reshape(batch, *spec.results, *spec.kernel, channels)
    x = x.transpose(0, *(axis for i in range(1, rank + 1) for axis in (i, i + rank)), 2 * rank + 1)
    sizes = [o * k for o, k in zip(spec.results, spec.kernel, strict=True)]
    x = x.reshape(batch, *sizes, channels)
    return pad(x, [(0, n - size, 0) for n, size in zip(spec.space, sizes, strict=True)])
