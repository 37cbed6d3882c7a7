"""Windows along one dimension: sums and largest elements, and how gradients go back.

The dimension, padded, is cut into blocks of one stride each. An element of a window then stands at the same place of
every block: what is read is a slice, what is written back are slices added up, with no gather, scatter or dilation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.jax_backend.linear import linear
from esper.jax_backend.platform.bias import sums
from esper.jax_backend.promotion import is_inexact


@dataclass(frozen=True)
class Windows:
    """The windows along one dimension: window o covers o * stride - padding + dilation * [0, size)."""

    size: int
    stride: int
    padding: int
    dilation: int
    count: int

    @property
    def blocks(self) -> int:
        """How many blocks of one stride they reach over."""
        return self.count + (self.size - 1) * self.dilation // self.stride

    def place(self, tap: int) -> tuple[int, int]:
        """Of the windows' `tap`-th elements: the block of the first one, and where in the blocks they stand."""
        return divmod(tap * self.dilation, self.stride)


def total_along(x: jax.Array, axis: int, w: Windows) -> jax.Array:
    """The sum of each window along `axis`; padding is 0."""
    return linear(partial(_added, axis, w), partial(_shared_out, axis, w, x.shape[axis]), (), x)


def total(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The sums over some dimensions, which are kept with size 1."""
    axes = tuple(axes)
    return linear(lambda _, x: sums(x, axes), lambda _, total: jnp.broadcast_to(total, x.shape), (), x)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def max_along(x: jax.Array, axis: int, w: Windows) -> jax.Array:
    """The largest of each window along `axis`; a NaN is larger than anything. The gradient goes to its winner."""
    return _search(x, axis, w)[0]


@max_along.defjvp
def _max_along_jvp(
    axis: int, w: Windows, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (dot,) = primals, tangents
    back = partial(_to_winners, axis, w, x.shape[axis])
    return max_along(x, axis, w), linear(partial(_picked, axis, w), back, winners(x, axis, w), dot)


def winners(x: jax.Array, axis: int, w: Windows) -> jax.Array:
    """Which element of each window is the largest: the first of equal ones, the last NaN."""
    return _search(lax.stop_gradient(x), axis, w)[1]


def pick(x: jax.Array, winner: jax.Array, axis: int, w: Windows) -> jax.Array:
    """What stands at the windows' winning elements."""
    return _picked(axis, w, winner, x)


def _search(x: jax.Array, axis: int, w: Windows) -> tuple[jax.Array, jax.Array]:
    """The largest of each window along `axis`, and which element it is."""
    best, *others = _taps(x, axis, w, _lowest(x.dtype))
    dtype = np.uint8 if w.size <= 256 else np.int32
    first = _first_taps(w).astype(dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    winner = jnp.broadcast_to(first, best.shape)
    for number, tap in enumerate(others, start=1):
        wins = (tap > best) | (tap != tap)  # a NaN wins
        best, winner = jnp.where(wins, tap, best), jnp.where(wins, dtype(number), winner)
    return best, winner


def _picked(axis: int, w: Windows, winner: jax.Array, x: jax.Array) -> jax.Array:
    return _plus(_where_wins(winner, number, tap) for number, tap in enumerate(_taps(x, axis, w, 0)))


def _to_winners(axis: int, w: Windows, size: int, winner: jax.Array, cotangent: jax.Array) -> jax.Array:
    return _back([_where_wins(winner, number, cotangent) for number in range(w.size)], axis, w, size)


def _added(axis: int, w: Windows, _: tuple[()], x: jax.Array) -> jax.Array:
    return _plus(_taps(x, axis, w, 0))


def _shared_out(axis: int, w: Windows, size: int, _: tuple[()], cotangent: jax.Array) -> jax.Array:
    return _back([cotangent] * w.size, axis, w, size)


def _where_wins(winner: jax.Array, number: int, x: jax.Array) -> jax.Array:
    return jnp.where(winner == np.asarray(number, winner.dtype), x, jnp.zeros((), x.dtype))


def _taps(x: jax.Array, axis: int, w: Windows, fill: float) -> list[jax.Array]:
    """For each place in the windows along `axis`, the elements that stand there; padding is `fill`."""
    padded = _padded(x, axis, w.padding, w.blocks * w.stride - w.padding - x.shape[axis], fill)
    blocks = padded.reshape(*x.shape[:axis], w.blocks, w.stride, *x.shape[axis + 1 :])
    taps = []
    for first, within in map(w.place, range(w.size)):
        there = lax.index_in_dim(blocks, within, axis + 1, keepdims=False)
        taps.append(lax.slice_in_dim(there, first, first + w.count, axis=axis))
    return taps


def _back(taps: Sequence[jax.Array], axis: int, w: Windows, size: int) -> jax.Array:
    """The transpose of `_taps`: what is for each place in the windows, added up where it stands."""
    shape = taps[0].shape
    within: list[list[jax.Array]] = [[] for _ in range(w.stride)]
    for number, tap in enumerate(taps):
        first, place = w.place(number)
        within[place].append(_padded(tap, axis, first, w.blocks - w.count - first, 0))
    nothing = jnp.zeros((*shape[:axis], w.blocks, *shape[axis + 1 :]), taps[0].dtype)
    blocks = jnp.stack([_plus(parts) if parts else nothing for parts in within], axis + 1)
    spread = blocks.reshape(*shape[:axis], w.blocks * w.stride, *shape[axis + 1 :])
    return _padded(spread, axis, -w.padding, w.padding + size - w.blocks * w.stride, 0)


def _plus(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _padded(x: jax.Array, axis: int, before: int, after: int, fill: float) -> jax.Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def _first_taps(w: Windows) -> np.ndarray:
    """For each window, its first element that is not padding."""
    starts = np.arange(w.count) * w.stride - w.padding
    return np.maximum(-(starts // w.dilation), 0)


def _lowest(dtype: np.dtype) -> float:
    return -jnp.inf if is_inexact(dtype) else jnp.iinfo(dtype).min
