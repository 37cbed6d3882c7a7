"""Depthwise convolutions as sums of shifted images, with their gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, weight: jax.Array, stride: int, padding: int) -> jax.Array:
    """Weights are (size, size, channels). Images are first cut into one image for each place within a stride, so that
    every shift reads whole rows."""
    size, (batch, *_, channels) = weight.shape[0], x.shape
    height, width = _results(x, size, stride, padding)
    images = _phases(x, stride, padding)
    total = jnp.zeros((batch, height, width, channels), x.dtype)
    for i in range(size):
        for j in range(size):
            total += _tap(images, i, j, stride, height, width) * weight[i, j]
    return total


def _forward(x, weight, stride, padding):
    return depthwise(x, weight, stride, padding), (x, weight)


def _backward(stride, padding, kept, g):
    x, weight = kept
    return _by_image(x, weight, stride, padding, g), _by_weight(x, weight.shape[0], stride, padding, g)


def _by_weight(x, size, stride, padding, g):
    images = _phases(x, stride, padding)
    # Sums over rows of the batch first, which stay in the cache; what is left is small.
    rows = []
    for i in range(size):
        taps = [jnp.sum(_tap(images, i, j, stride, *g.shape[1:3]) * g, (0, 1)) for j in range(size)]
        rows.append(jnp.stack(taps))
    return jnp.sum(jnp.stack(rows), 2)


def _by_image(x, weight, stride, padding, g):
    if stride == 1:
        return depthwise(g, weight[::-1, ::-1], 1, weight.shape[0] - 1 - padding)
    size, reach = weight.shape[0], (weight.shape[0] - 1) // stride
    (batch, *lengths, channels), (height, width) = x.shape, g.shape[1:3]
    tall, wide = (-(-(length + 2 * padding) // stride) for length in lengths)
    ends = [(0, 0), (reach, max(0, tall - height)), (reach, max(0, wide - width)), (0, 0)]
    padded = jnp.pad(g, ends)
    images = []
    for a in range(stride):
        for b in range(stride):
            total = jnp.zeros((batch, tall, wide, channels), g.dtype)
            for i in range(a, size, stride):
                for j in range(b, size, stride):
                    top, left = reach - i // stride, reach - j // stride
                    total += padded[:, top : top + tall, left : left + wide] * weight[i, j]
            images.append(total)
    joined = jnp.stack(images).reshape(stride, stride, batch, tall, wide, channels).transpose(2, 3, 0, 4, 1, 5)
    whole = joined.reshape(batch, tall * stride, wide * stride, channels)
    return whole[:, padding : padding + lengths[0], padding : padding + lengths[1]]


def _results(x: jax.Array, size: int, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((length + 2 * padding - size) // stride + 1 for length in x.shape[1:3])
    return height, width


def _phases(x: jax.Array, stride: int, padding: int) -> list[list[jax.Array]]:
    """The padded image's elements (stride * i + a, stride * j + b), for each a and b."""
    ends = [(padding, padding + -(length + 2 * padding) % stride) for length in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), *ends, (0, 0)))
    if stride == 1:
        return [[padded]]
    batch, height, width, channels = padded.shape
    cut = padded.reshape(batch, height // stride, stride, width // stride, stride, channels)
    return [[cut[:, :, a, :, b] for b in range(stride)] for a in range(stride)]


def _tap(images: list[list[jax.Array]], i: int, j: int, stride: int, height: int, width: int) -> jax.Array:
    image, (top, left) = images[i % stride][j % stride], (i // stride, j // stride)
    return image[:, top : top + height, left : left + width]


depthwise.defvjp(_forward, _backward)
