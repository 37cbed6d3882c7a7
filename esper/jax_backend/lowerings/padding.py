"""Padding and sliding patches (aten/src/ATen/native/PadNd.cpp, ReflectionPad.cpp, Im2Col.cpp, Col2Im.cpp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from esper.jax_backend.registry import lowers

_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@lowers("aten.col2im.default")
def col2im(x, output_size, kernel_size, dilation, padding, stride):
    """col2im(Tensor self, SymInt[2] output_size, int[2] kernel_size, int[2] dilation, int[2] padding, int[2] stride) -> Tensor"""  # noqa: E501
    area = kernel_size[0] * kernel_size[1]
    image = jax.ShapeDtypeStruct((*x.shape[:-2], x.shape[-2] // area, *output_size), x.dtype)
    # The sum of overlapping patches is the transpose of cutting them out.
    (folded,) = jax.linear_transpose(lambda y: im2col(y, kernel_size, dilation, padding, stride), image)(x)
    return folded


@lowers("aten.constant_pad_nd.default")
def constant_pad_nd(x, pad, value=0):
    """constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [(low, high, 0) for low, high in _widths(x, pad)])


def _widths(x, pad):
    """(before, after) of every dimension: torch lists the last dimension first, and only those that grow."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    return [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]


@lowers("aten.im2col.default")
def im2col(x, kernel_size, dilation, padding, stride):
    """im2col(Tensor self, int[2] kernel_size, int[2] dilation, int[2] padding, int[2] stride) -> Tensor"""
    padded = constant_pad_nd(x, (padding[1], padding[1], padding[0], padding[0]))
    *batch, channels, height, width = padded.shape
    rows = (height - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    patches = [
        padded[
            ...,
            slice(i * dilation[0], i * dilation[0] + (rows - 1) * stride[0] + 1, stride[0]),
            slice(j * dilation[1], j * dilation[1] + (columns - 1) * stride[1] + 1, stride[1]),
        ]
        for i in range(kernel_size[0])
        for j in range(kernel_size[1])
    ]
    return jnp.stack(patches, axis=-3).reshape(*batch, channels * len(patches), rows * columns)


@lowers("aten.pad.default")
def pad_(x, pad, mode="constant", value=None):
    """pad(Tensor self, SymInt[] pad, str mode='constant', float? value=None) -> Tensor"""
    if mode == "constant":
        return constant_pad_nd(x, pad, value or 0)
    widths = _widths(x, pad)
    if any(isinstance(w, int) and w < 0 for pair in widths for w in pair):  # negative widths crop
        if mode != "circular":
            return _by_place(x, widths, mode)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(min(low, 0), min(high, 0), 0) for low, high in widths])
        widths = [(max(low, 0), max(high, 0)) for low, high in widths]
    return jnp.pad(x, widths, mode=_MODES[mode])


def _by_place(x, widths, mode):
    """Reflection or replication about the ends of `x` itself, also where a negative width cuts them off."""
    for axis, (low, high) in enumerate(widths):
        last = x.shape[axis] - 1
        places = np.arange(-low, last + high + 1)
        if mode == "reflect":
            places = last - np.abs(last - np.abs(places))
        x = jnp.take(x, np.clip(places, 0, last), axis=axis)
    return x


@lowers("aten._pad_circular.default")
def pad_circular(x, pad):
    """_pad_circular(Tensor self, SymInt[] pad) -> Tensor"""
    return pad_(x, pad, "circular")


@lowers("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")
def reflection_pad(x, padding):
    """reflection_pad2d(Tensor self, SymInt[4] padding) -> Tensor"""
    return pad_(x, padding, "reflect")


@lowers("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")
def replication_pad(x, padding):
    """replication_pad2d(Tensor self, SymInt[4] padding) -> Tensor"""
    return pad_(x, padding, "replicate")
