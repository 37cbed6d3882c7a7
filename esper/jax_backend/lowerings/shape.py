"""Views and other changes of shape (aten/src/ATen/native/TensorShape.cpp, TensorTransformations.cpp).

Sizes may be symbolic (`jax.export`), so nothing here counts elements. Views by strides are in `strided`.
"""

from __future__ import annotations

import math
import sys

import jax
import jax.numpy as jnp

from esper.jax_backend.axes import axis
from esper.jax_backend.registry import lowers


@lowers("aten.broadcast_to.default")
def broadcast_to(x, size):
    """broadcast_to(Tensor(a) self, SymInt[] size) -> Tensor(a)"""
    return expand(x, size)


@lowers("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(x, groups):
    """channel_shuffle(Tensor self, SymInt groups) -> Tensor"""
    batch, channels, *rest = x.shape
    return x.reshape(batch, groups, channels // groups, *rest).swapaxes(1, 2).reshape(x.shape)


@lowers("aten.diag.default")
def diag(x, diagonal=0):
    """diag(Tensor self, int diagonal=0) -> Tensor"""
    return jnp.diag(x, diagonal)


@lowers("aten.diag_embed.default")
def diag_embed(x, offset=0, dim1=-2, dim2=-1):
    """diag_embed(Tensor self, int offset=0, int dim1=-2, int dim2=-1) -> Tensor"""
    below, right = max(-offset, 0), max(offset, 0)
    n = x.shape[-1] + abs(offset)
    places = jnp.arange(x.shape[-1])
    embedded = jnp.zeros((*x.shape[:-1], n, n), x.dtype).at[..., places + below, places + right].set(x)
    return jnp.moveaxis(embedded, (-2, -1), (dim1, dim2))


@lowers("aten.diagflat.default")
def diagflat(x, offset=0):
    """diagflat(Tensor self, int offset=0) -> Tensor"""
    return jnp.diag(x.reshape(-1), offset)


@lowers("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(x, offset=0, dim1=0, dim2=1):
    """diagonal(Tensor(a) self, int offset=0, int dim1=0, int dim2=1) -> Tensor(a)"""
    return jnp.diagonal(x, offset, dim1, dim2)


@lowers("aten.expand.default", "aten.expand_copy.default")
def expand(x, size, *, implicit=False):
    """expand(Tensor(a) self, SymInt[] size, *, bool implicit=False) -> Tensor(a)"""
    kept = (None,) * (len(size) - x.ndim) + x.shape
    return jnp.broadcast_to(x, [own if _is(n, -1) else n for own, n in zip(kept, size, strict=True)])


@lowers("aten.expand_as.default")
def expand_as(x, other):
    """expand_as(Tensor(a) self, Tensor other) -> Tensor(a)"""
    return jnp.broadcast_to(x, other.shape)


@lowers("aten.flatten.using_ints")
def flatten(x, start_dim=0, end_dim=-1):
    """flatten.using_ints(Tensor(a) self, int start_dim=0, int end_dim=-1) -> Tensor(a)"""
    start, end = axis(x, start_dim), axis(x, end_dim)
    return x.reshape(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])


@lowers("aten.flip.default")
def flip(x, dims):
    """flip(Tensor self, int[] dims) -> Tensor"""
    return jnp.flip(x, dims)


lowers("aten.fliplr.default")(jnp.fliplr)
lowers("aten.flipud.default")(jnp.flipud)


@lowers("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int", "aten.moveaxis.intlist")
def movedim(x, source, destination):
    """movedim.intlist(Tensor(a) self, int[] source, int[] destination) -> Tensor(a)"""
    return jnp.moveaxis(x, source, destination)


@lowers("aten.narrow.default", "aten.narrow_copy.default")
def narrow(x, dim, start, length):
    """narrow(Tensor(a) self, int dim, SymInt start, SymInt length) -> Tensor(a)"""
    start = start + x.shape[dim] if start < 0 else start
    return slice_(x, dim, start, start + length)


@lowers("aten.permute.default", "aten.permute_copy.default")
def permute(x, dims):
    """permute(Tensor(a) self, int[] dims) -> Tensor(a)"""
    return jnp.transpose(x, dims)


@lowers("aten.pixel_shuffle.default")
def pixel_shuffle(x, upscale_factor):
    """pixel_shuffle(Tensor self, int upscale_factor) -> Tensor"""
    *batch, channels, height, width = x.shape
    r, n = upscale_factor, len(batch)
    x = x.reshape(*batch, channels // r**2, r, r, height, width)
    x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*batch, channels // r**2, height * r, width * r)


@lowers("aten.pixel_unshuffle.default")
def pixel_unshuffle(x, downscale_factor):
    """pixel_unshuffle(Tensor self, int downscale_factor) -> Tensor"""
    *batch, channels, height, width = x.shape
    r, n = downscale_factor, len(batch)
    x = x.reshape(*batch, channels, height // r, r, width // r, r)
    x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*batch, channels * r**2, height // r, width // r)


@lowers("aten.repeat.default", "aten.tile.default")
def repeat(x, repeats):
    """repeat(Tensor self, SymInt[] repeats) -> Tensor"""
    return jnp.tile(x, repeats)


@lowers("aten.roll.default")
def roll(x, shifts, dims=()):
    """roll(Tensor self, SymInt[1] shifts, int[1] dims=[]) -> Tensor"""
    return jnp.roll(x, shifts, dims) if dims else jnp.roll(x, shifts[0] if isinstance(shifts, tuple) else shifts)


@lowers("aten.rot90.default")
def rot90(x, k=1, dims=(0, 1)):
    """rot90(Tensor self, int k=1, int[] dims=[0,1]) -> Tensor"""
    return jnp.rot90(x, k, dims)


@lowers("aten.select.int", "aten.select_copy.int")
def select(x, dim, index):
    """select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)"""
    return jax.lax.index_in_dim(x, index, axis(x, dim), keepdims=False)


@lowers("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slice_(x, dim=0, start=None, end=None, step=1):
    """slice.Tensor(Tensor(a) self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor(a)"""
    end = None if _is(end, sys.maxsize) else end  # torch's way to say "to the end"
    if end is None and step == 1 and (start is None or _is(start, 0)):
        return x
    return x[(slice(None),) * axis(x, dim) + (slice(start, end, step),)]


@lowers("aten.squeeze.default", "aten.squeeze_copy.default")
def squeeze(x):
    """squeeze(Tensor(a) self) -> Tensor(a)"""
    return squeeze_dims(x, tuple(range(x.ndim)))


@lowers("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze_copy.dim", "aten.squeeze_copy.dims")
def squeeze_dims(x, dim):
    """squeeze.dims(Tensor(a) self, int[] dim) -> Tensor(a)"""
    dims = [axis(x, d) for d in ((dim,) if isinstance(dim, int) else dim)]
    return jnp.squeeze(x, [d for d in dims if x.ndim and _is(x.shape[d], 1)])


@lowers("aten.t.default", "aten.t_copy.default", "aten.numpy_T.default")
def t(x):
    """t(Tensor(a) self) -> Tensor(a)"""
    return x.T


lowers("aten.mT.default")(lambda x: jnp.swapaxes(x, -2, -1))


@lowers("aten.transpose.int", "aten.transpose_copy.int", "aten.swapaxes.default", "aten.swapdims.default")
def transpose(x, dim0, dim1):
    """transpose.int(Tensor(a) self, int dim0, int dim1) -> Tensor(a)"""
    return jnp.swapaxes(x, dim0, dim1) if x.ndim else x


@lowers("aten.tril.default")
def tril(x, diagonal=0):
    """tril(Tensor self, SymInt diagonal=0) -> Tensor"""
    return jnp.tril(x, diagonal)


@lowers("aten.triu.default")
def triu(x, diagonal=0):
    """triu(Tensor self, SymInt diagonal=0) -> Tensor"""
    return jnp.triu(x, diagonal)


@lowers("aten.unflatten.int")
def unflatten(x, dim, sizes):
    """unflatten.int(Tensor(a) self, int dim, SymInt[] sizes) -> Tensor(a)"""
    dim = axis(x, dim)
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


@lowers("aten.unfold.default", "aten.unfold_copy.default")
def unfold(x, dimension, size, step):
    """unfold(Tensor(a) self, int dimension, int size, int step) -> Tensor(a)"""
    if x.ndim == 0:
        return x.reshape(1)[:size]
    dim = axis(x, dimension)
    count = (x.shape[dim] - size) // step + 1
    # Slices along the shorter of the two ways: their gradient is a sum of pads, not a scatter.
    if size <= count:
        last = (count - 1) * step + 1
        return jnp.stack([jax.lax.slice_in_dim(x, i, i + last, step, dim) for i in range(size)], axis=-1)
    windows = [jax.lax.slice_in_dim(x, i * step, i * step + size, axis=dim) for i in range(count)]
    return jnp.moveaxis(jnp.stack(windows, axis=dim), dim + 1, -1)


@lowers("aten.unsqueeze.default", "aten.unsqueeze_copy.default")
def unsqueeze(x, dim):
    """unsqueeze(Tensor(a) self, int dim) -> Tensor(a)"""
    return jnp.expand_dims(x, dim)


@lowers("aten.view.default", "aten.view_copy.default", "aten._unsafe_view.default", "aten.reshape.default")
@lowers("aten._reshape_copy.default")
def view(x, size):
    """view(Tensor(a) self, SymInt[] size) -> Tensor(a)"""
    return x.reshape(size)


@lowers("aten._reshape_alias.default", "aten._reshape_alias_copy.default")
def reshape_alias(x, size, stride):
    """_reshape_alias(Tensor(a) self, SymInt[] size, SymInt[] stride) -> Tensor(a)"""
    return x.reshape(size)


@lowers("aten.view_as.default", "aten.reshape_as.default")
def view_as(x, other):
    """view_as(Tensor(a) self, Tensor other) -> Tensor(a)"""
    return x.reshape(other.shape)


@lowers("aten.view.dtype", "aten.view_copy.dtype")
def view_dtype(x, dtype):
    """view.dtype(Tensor(a) self, ScalarType dtype) -> Tensor(a)"""
    return x.view(dtype)


def _is(size, value):
    """Whether a size is a number equal to `value`; a symbolic one never is."""
    return isinstance(size, int) and size == value
