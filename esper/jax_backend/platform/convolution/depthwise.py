"""Convolutions of every channel by itself as sums of shifted products, channels last.

A channel may have several outputs: it is then repeated. The sums are compiled by themselves, and of arrays that are in
memory in order: XLA would otherwise compute what they read anew for every tap, and would not vectorise the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from itertools import product
from operator import add

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.convolution.patches import pad, shifted
from esper.jax_backend.platform.convolution.spec import Spec
from esper.jax_backend.platform.fence import fenced
from esper.jax_backend.platform.precision import contract

Ints = Sequence[int]

_TILE = {1: (16, 64), 2: (4, 8), 3: (2, 4)}
"""Outputs along each of so many dimensions that a weight gradient sums before it sums over all tiles: fewest, most."""


def convolve(x: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """For each tap the shifted input times the tap's weights."""
    x = _repeated(x, weight.shape[0] // spec.groups)
    return _sums(pad(x, [(low, high, 0) for low, high in spec.pads]), _taps(weight), spec)


def input_gradient(cotangent: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """The same of the cotangent between zeros, the taps in reverse, summed over a channel's outputs."""
    back, several = spec.flipped(), weight.shape[0] // spec.groups
    places = [(low, high, stride - 1) for (low, high), stride in zip(back.pads, spec.stride, strict=True)]
    made = _sums(pad(cotangent, places), _taps(weight)[::-1], back)
    return made.reshape(*made.shape[:-1], spec.groups, several).sum(-1) if several > 1 else made


@partial(fenced, static=(2,))
def _sums(x: jax.Array, taps: jax.Array, spec: Spec) -> jax.Array:
    """Of an input with its zeros around it, and weights (taps, channels)."""
    bare = spec._replace(space=x.shape[1:-1], pads=((0, 0),) * spec.rank)
    return reduce(add, (part * tap for part, tap in zip(shifted(x, bare), taps, strict=True)))


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Sums over small tiles of outputs, side by side for all taps, channels and tiles; then over the tiles."""
    outputs = cotangent.shape[-1]
    tile = tuple(map(partial(_tile, spec.rank), spec.reach, spec.results))
    tiles = [-(-size // t) for size, t in zip(spec.results, tile, strict=True)]
    size = [(t - 1) * s + r + 1 for t, s, r in zip(tile, spec.stride, spec.reach, strict=True)]
    step = [t * s for t, s in zip(tile, spec.stride, strict=True)]
    seen = _windows(_repeated(x, outputs // spec.groups), [low for low, _ in spec.pads], tiles, step, size)
    given = _windows(cotangent, [0] * spec.rank, tiles, tile, tile)
    rows = _met(seen, given, spec).reshape(seen.shape[0], -1)
    total = contract(jnp.ones(rows.shape[0], rows.dtype), rows, ((0,), (0,)))
    return jnp.moveaxis(total.reshape(-1, outputs), 0, 1).reshape(outputs, 1, *spec.kernel)


def _tile(rank: int, reach: int, size: int) -> int:
    fewest, most = _TILE[rank]
    return min(size, max(fewest, min(most, reach + 2)))


def _repeated(x: jax.Array, times: int) -> jax.Array:
    return jnp.repeat(x, times, axis=-1) if times > 1 else x


def _taps(weight: jax.Array) -> jax.Array:
    """(taps, outputs)."""
    return weight.reshape(weight.shape[0], -1).T


def _windows(x: jax.Array, low: Ints, counts: Ints, steps: Ints, sizes: Ints) -> jax.Array:
    """Windows that may overlap, (all windows of all images, *sizes, channels), zeros beyond the ends."""
    for i, (before, count, step, size) in enumerate(zip(low, counts, steps, sizes, strict=True)):
        axis = 2 * i + 1  # behind the axes of the windows taken so far, the batch and the dimensions done
        pieces = -(-size // step)
        x = pad(x, [(before, (count + pieces - 1) * step - before - x.shape[axis], 0)], axis)
        # Whole steps, and what a window has beyond its own. One piece for each window would take longer to compile.
        parts = [lax.slice_in_dim(x, n * step, (n + count) * step, axis=axis) for n in range(pieces)]
        parts = [part.reshape(*x.shape[:axis], count, step, *x.shape[axis + 1 :]) for part in parts]
        joined = jnp.concatenate(parts, axis=axis + 1) if pieces > 1 else parts[0]
        x = lax.slice_in_dim(joined, 0, size, axis=axis + 1)
        x = jnp.moveaxis(x, axis, i + 1)
    return x.reshape(-1, *x.shape[len(sizes) + 1 :])


@partial(fenced, static=(2,))
def _met(seen: jax.Array, given: jax.Array, spec: Spec) -> jax.Array:
    """Of every window the sums for all taps and channels, over the outputs in it."""
    places = product(*map(range, given.shape[1:-1]))
    return reduce(add, (_seen_from(place, seen, spec) * _at(given, place) for place in places))


def _seen_from(place: tuple[int, ...], seen: jax.Array, spec: Spec) -> jax.Array:
    starts = [p * s for p, s in zip(place, spec.stride, strict=True)]
    cut = [slice(at, at + r + 1, d) for at, r, d in zip(starts, spec.reach, spec.dilation, strict=True)]
    return seen[:, *cut]


def _at(given: jax.Array, place: tuple[int, ...]) -> jax.Array:
    return given[:, *(slice(p, p + 1) for p in place)]
