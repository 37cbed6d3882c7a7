"""Convolutions of every channel by itself as sums of shifted products, channels last.

A channel may have several outputs. What the sums read is finished beforehand, and the sums are finished before they
are read: XLA would otherwise compute them anew, all taps of them, for every reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from operator import add

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.convolution.patches import pad, shifted
from esper.jax_backend.platform.convolution.spec import Spec
from esper.jax_backend.platform.precision import contract

Ints = Sequence[int]

_TILE = {1: 16, 2: 4, 3: 2}
"""Outputs along each of so many dimensions that a weight gradient sums before it sums over all tiles."""


def convolve(x: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """For each tap the shifted input times the tap's weights."""
    taps = _taps(weight, spec)

    def sums(x: jax.Array) -> jax.Array:
        out = reduce(add, (part * tap for part, tap in zip(shifted(x[..., None], spec), taps, strict=True)))
        return out.reshape(x.shape[0], *spec.results, weight.shape[0])

    return _by_itself(sums, x)


def input_gradient(cotangent: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """The same of the cotangent between zeros, the taps in reverse, summed over a channel's outputs."""
    taps, back = _taps(weight, spec)[::-1], spec.flipped()

    def sums(cotangent: jax.Array) -> jax.Array:
        spread = pad(_by_channel(cotangent, spec.groups), [(0, 0, s - 1) for s in spec.stride])
        return reduce(add, (part * tap for part, tap in zip(shifted(spread, back), taps, strict=True))).sum(-1)

    return _by_itself(sums, cotangent)


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Sums over small tiles of outputs, side by side for all taps, channels and tiles; then over the tiles."""
    tile = tuple(min(_TILE[spec.rank], size) for size in spec.results)
    tiles = [-(-size // t) for size, t in zip(spec.results, tile, strict=True)]
    size = [(t - 1) * s + r + 1 for t, s, r in zip(tile, spec.stride, spec.reach, strict=True)]
    step = [t * s for t, s in zip(tile, spec.stride, strict=True)]
    seen = _windows(x, [low for low, _ in spec.pads], tiles, step, size)[..., None]
    given = _by_channel(_windows(cotangent, [0] * spec.rank, tiles, tile, tile), spec.groups)
    seen, given = lax.optimization_barrier((seen, given))
    each = reduce(add, (_met(seen, place, spec) * _at(given, place) for place in product(*map(range, tile))))
    rows = lax.optimization_barrier(each.reshape(each.shape[0], -1))
    total = contract(jnp.ones(rows.shape[0], rows.dtype), rows, ((0,), (0,)))
    return jnp.moveaxis(total.reshape(-1, cotangent.shape[-1]), 0, 1).reshape(-1, 1, *spec.kernel)


def _by_itself(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of parts of the batch, in a loop: the one thing that XLA fuses nothing with."""
    batch = x.shape[0]
    if not isinstance(batch, int) or batch < 2:
        return function(x)
    parts = next(n for n in range(2, batch + 1) if batch % n == 0)
    made = lax.map(function, x.reshape(parts, batch // parts, *x.shape[1:]))
    return made.reshape(batch, *made.shape[2:])


def _taps(weight: jax.Array, spec: Spec) -> jax.Array:
    """(taps, channels, outputs of a channel)."""
    return _by_channel(weight.reshape(weight.shape[0], -1).T, spec.groups)


def _by_channel(outputs: jax.Array, channels: int) -> jax.Array:
    """The last axis as (channels, outputs of a channel)."""
    return outputs.reshape(*outputs.shape[:-1], channels, outputs.shape[-1] // channels)


def _windows(x: jax.Array, low: Ints, counts: Ints, steps: Ints, sizes: Ints) -> jax.Array:
    """Windows that may overlap, (all windows of all images, *sizes, channels), zeros beyond the ends."""
    for i, (before, count, step, size) in enumerate(zip(low, counts, steps, sizes, strict=True)):
        axis = 2 * i + 1  # behind the axes of the windows taken so far, the batch and the dimensions done
        pieces = -(-size // step)
        x = pad(x, [(before, (count + pieces - 1) * step - before - x.shape[axis], 0)], axis)
        # Whole steps, and what a window has beyond its own: two pieces, where one for each window takes longer to compile.
        parts = [lax.slice_in_dim(x, n * step, (n + count) * step, axis=axis) for n in range(pieces)]
        parts = [part.reshape(*x.shape[:axis], count, step, *x.shape[axis + 1 :]) for part in parts]
        joined = jnp.concatenate(parts, axis=axis + 1) if pieces > 1 else parts[0]
        x = lax.slice_in_dim(joined, 0, size, axis=axis + 1)
        x = jnp.moveaxis(x, axis, i + 1)
    return x.reshape(-1, *x.shape[len(sizes) + 1 :])


def _met(seen: jax.Array, place: tuple[int, ...], spec: Spec) -> jax.Array:
    """Of every window what all taps meet for the output at `place`."""
    starts = [p * s for p, s in zip(place, spec.stride, strict=True)]
    cut = [slice(at, at + r + 1, d) for at, r, d in zip(starts, spec.reach, spec.dilation, strict=True)]
    return seen[:, *cut]


def _at(given: jax.Array, place: tuple[int, ...]) -> jax.Array:
    return given[:, *(slice(p, p + 1) for p in place)]
