"""Max pooling: which element won is kept, and the gradient is sent there. The first of equals wins, as in torch."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Channels last."""
    cut = size == stride and not padding and not (x.shape[1] % size or x.shape[2] % size)
    return tiles_max(x, size) if cut else windows_max(x, size, stride, padding)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def tiles_max(x: jax.Array, size: int) -> jax.Array:
    """Of windows that cover the image and do not overlap."""
    return _tiles_forward(x, size)[0]


def _tiles_forward(x, size):
    batch, height, width, channels = x.shape
    cut = x.reshape(batch, height // size, size, width // size, size, channels)
    return _best(cut[:, :, i, :, j] for i in range(size) for j in range(size))


def _tiles_backward(size, winner, g):
    batch, height, width, channels = g.shape
    number = jnp.arange(size * size, dtype=winner.dtype).reshape(size, 1, size, 1)
    won = jnp.where(winner[:, :, None, :, None] == number, g[:, :, None, :, None], 0)
    return (won.reshape(batch, height * size, width * size, channels),)


tiles_max.defvjp(_tiles_forward, _tiles_backward)


def _best(taps):
    """The largest, and its number."""
    best, *others = taps
    winner = jnp.zeros(best.shape, jnp.uint8)
    for number, taken in enumerate(others, 1):
        winner = jnp.where(taken > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, taken)
    return best, winner


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def windows_max(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Of any windows."""
    return _windows_forward(x, size, stride, padding)[0]


def _windows_forward(x, size, stride, padding):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, pads, constant_values=-jnp.inf)
    best, winner = _best(_taps(padded, size, stride))
    # An empty part of the input stands for its shape, which gradients need.
    return best, (winner, x[:, :, :, :0])


def _windows_backward(size, stride, padding, kept, g):
    winner, like = kept
    height, width = (length + 2 * padding for length in like.shape[1:3])
    total = jnp.zeros((g.shape[0], height, width, g.shape[3]), g.dtype)
    for tap in range(size * size):
        i, j = divmod(tap, size)
        won = jnp.where(winner == tap, g, 0)
        down, across = _spread(height, i, g.shape[1], stride), _spread(width, j, g.shape[2], stride)
        total += lax.pad(won, jnp.zeros((), g.dtype), ((0, 0, 0), down, across, (0, 0, 0)))
    return (total[:, padding : height - padding, padding : width - padding],)


def _spread(length: int, offset: int, count: int, stride: int) -> tuple[int, int, int]:
    """How to pad an axis so that its elements lie at offset, offset + stride, and so on."""
    return offset, length - offset - (stride * (count - 1) + 1), stride - 1


def _taps(padded, size, stride):
    height, width = ((padded.shape[axis] - size) // stride + 1 for axis in (1, 2))
    for i in range(size):
        for j in range(size):
            yield padded[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]


windows_max.defvjp(_windows_forward, _windows_backward)
