"""Dense layers, column sums, and convolutions that are matrix products, with their gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def column_sums(x: jax.Array) -> jax.Array:
    """Over all axes but the last, as a product with ones: a reduction over rows is slow here."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.ones(rows.shape[0], x.dtype) @ rows


@jax.custom_vjp
def dense(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """`weight` is (out, in): both gradients are then plain products of flat matrices."""
    return times(x, weight) + bias


def _dense_forward(x, weight, bias):
    return dense(x, weight, bias), (x, weight)


def _dense_backward(kept, g):
    return _times_backward(kept, g) + (column_sums(g),)


def times(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight.T, flat."""
    flat = lax.dot_general(x.reshape(-1, x.shape[-1]), weight, (((1,), (1,)), ((), ())))
    return flat.reshape(*x.shape[:-1], weight.shape[0])


def _times_backward(kept, g):
    x, weight = kept
    rows = g.reshape(-1, g.shape[-1])
    by_weight = lax.dot_general(rows, x.reshape(-1, x.shape[-1]), (((0,), (0,)), ((), ())))
    return (rows @ weight).reshape(x.shape), by_weight


dense.defvjp(_dense_forward, _dense_backward)


def patches(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Windows of images with channels last, (batch, height, width, size * size * channels)."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((x.shape[axis] - size) // stride + 1 for axis in (1, 2))
    taps = [_tap(x, i, j, height, width, stride) for i in range(size) for j in range(size)]
    return jnp.concatenate(taps, -1)


def _tap(x: jax.Array, i: int, j: int, height: int, width: int, stride: int) -> jax.Array:
    ends = (x.shape[0], i + stride * (height - 1) + 1, j + stride * (width - 1) + 1, x.shape[3])
    return lax.slice(x, (0, i, j, 0), ends, (1, stride, stride, 1))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def same_conv(x: jax.Array, weight: jax.Array, padding: int) -> jax.Array:
    """Stride 1, sizes kept: windows times weights (size, size, in, out); the input's gradient is one of the same."""
    return _matrix_conv(x, weight, padding)[0]


def _matrix_conv(x, weight, padding):
    windows = patches(x, weight.shape[0], 1, padding)
    flat = windows.reshape(-1, windows.shape[-1]) @ weight.reshape(-1, weight.shape[3])
    return flat.reshape(*x.shape[:3], weight.shape[3]), windows


def _same_conv_forward(x, weight, padding):
    y, windows = _matrix_conv(x, weight, padding)
    return y, (windows, weight)


def _same_conv_backward(padding, kept, g):
    windows, weight = kept
    rows = g.reshape(-1, g.shape[-1])
    by_weight = windows.reshape(-1, windows.shape[-1]).T @ rows
    turned = weight[::-1, ::-1].swapaxes(2, 3)
    return _matrix_conv(g, turned, padding)[0], by_weight.reshape(weight.shape)


same_conv.defvjp(_same_conv_forward, _same_conv_backward)


def patchify(x: jax.Array, weight: jax.Array) -> jax.Array:
    """A convolution whose windows do not overlap."""
    size, (batch, height, width, channels) = weight.shape[0], x.shape
    cut = x.reshape(batch, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    flat = cut.reshape(batch, height // size, width // size, size * size * channels)
    return times(flat, weight.reshape(-1, weight.shape[3]).T)


def unpatchify(x: jax.Array, weight: jax.Array) -> jax.Array:
    """A transposed convolution whose windows do not overlap; the weight is (size, size, out, in)."""
    (size, _, outputs, inputs), (batch, height, width, _) = weight.shape, x.shape
    flat = times(x, weight.reshape(-1, inputs))
    cut = flat.reshape(batch, height, width, size, size, outputs).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, height * size, width * size, outputs)
