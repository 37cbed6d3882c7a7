"""Reading and writing by index (aten/src/ATen/native/TensorAdvancedIndexing.cpp).

XLA cannot raise for an index out of range. Here reading one gives NaN (the lowest value for integers)
and writing one does nothing, and neither has a gradient: nothing is clamped to a neighbour unseen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.errors import RefusedError
from esper.jax_backend.axes import at_least_1d, axis
from esper.jax_backend.promotion import default_int
from esper.jax_backend.registry import lowers


@lowers("aten.gather.default")
def gather(x, dim, index, *, sparse_grad=False):
    """gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor"""
    if x.ndim == 0:
        return jnp.broadcast_to(x, index.shape)
    dim = axis(x, dim)
    return jnp.take_along_axis(_cut(x, at_least_1d(index), dim), at_least_1d(index), dim, mode="fill").reshape(
        index.shape
    )


def _cut(x, index, dim):
    """`x` cut to the sizes of `index`, except along `dim`."""
    for d in range(x.ndim):
        if d != dim and x.shape[d] != index.shape[d]:
            x = jax.lax.slice_in_dim(x, 0, index.shape[d], axis=d)
    return x


@lowers("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index_tensor(x, indices):
    """index.Tensor(Tensor self, Tensor?[] indices) -> Tensor"""
    if any(_is_mask(index) for index in indices):
        raise RefusedError(
            "indexing with a boolean mask gives a size that depends on data, which XLA does not have: "
            "use torch.where or masked_fill"
        )
    return x.at[_subscript(indices)].get(mode="fill")


def _subscript(indices):
    return tuple(slice(None) if index is None else index for index in indices)


def _is_mask(index):
    return index is not None and index.dtype in (jnp.bool_, jnp.uint8)


@lowers("aten.index_add.default")
def index_add(x, dim, index, source, *, alpha=1):
    """index_add(Tensor self, int dim, Tensor index, Tensor source, *, Scalar alpha=1) -> Tensor"""
    source = source if alpha == 1 else source * jnp.asarray(alpha, source.dtype)
    return _rows(x, dim, index, source, "add")


@lowers("aten.index_copy.default")
def index_copy(x, dim, index, source):
    """index_copy(Tensor self, int dim, Tensor index, Tensor source) -> Tensor"""
    return _rows(x, dim, index, source, "set")


@lowers("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(x, dim, index, value):
    """index_fill.int_Scalar(Tensor self, int dim, Tensor index, Scalar value) -> Tensor"""
    return _rows(x, dim, index, jnp.asarray(value, x.dtype), "set")


def _rows(x, dim, index, source, how):
    """Updates the rows `index` of dimension `dim` by `source`."""
    if x.ndim == 0:
        return _rows(x[None], 0, index, at_least_1d(source), how)[0]
    place = (slice(None),) * axis(x, dim) + (at_least_1d(index),)
    return getattr(x.at[place], how)(source.astype(x.dtype), mode="drop")


@lowers("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(x, indices, values, accumulate=False):
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    if any(_is_mask(index) for index in indices):
        return _put_masked(x, indices, values, accumulate)
    place = x.at[_subscript(indices)]
    values = values.astype(x.dtype)
    return place.add(values, mode="drop") if accumulate else place.set(values, mode="drop")


def _put_masked(x, indices, values, accumulate):
    """x[:, mask] = values, for values that are the same in every selected place."""
    *before, mask = [index for place, index in enumerate(indices) if any(i is not None for i in indices[place:])]
    after = x.ndim - len(before) - mask.ndim
    if any(index is not None for index in before) or (values.ndim > after and values.shape[-after - 1] != 1):
        raise RefusedError(
            "assigning a different value to each place a boolean mask selects depends on data: use torch.where"
        )
    if values.ndim > after:
        values = values.reshape(values.shape[: -after - 1] + (1,) * mask.ndim + values.shape[values.ndim - after :])
    chosen = (mask if mask.dtype == bool else mask != 0).reshape(mask.shape + (1,) * after)
    values = values.astype(x.dtype)
    return jnp.where(chosen, x + values if accumulate else values, x)


@lowers("aten.index_select.default")
def index_select(x, dim, index):
    """index_select(Tensor self, int dim, Tensor index) -> Tensor"""
    if x.ndim == 0:
        return x
    return jnp.take(x, at_least_1d(index), axis=dim, mode="fill")


@lowers("aten.masked_scatter.default")
def masked_scatter(x, mask, source):
    """masked_scatter(Tensor self, Tensor mask, Tensor source) -> Tensor"""
    shape = jnp.broadcast_shapes(x.shape, mask.shape)
    x, mask = jnp.broadcast_to(x, shape), jnp.broadcast_to(mask, shape)
    # The n-th place that is set takes the n-th value of the source.
    order = jnp.cumsum(mask.reshape(-1)) - 1
    return jnp.where(mask, jnp.take(source.reshape(-1), order, mode="clip").reshape(shape), x)


@lowers("aten._unsafe_masked_index.default")
def masked_index(x, mask, indices, fill):
    """_unsafe_masked_index(Tensor self, Tensor mask, Tensor?[] indices, Scalar fill) -> Tensor"""
    read = x.at[_subscript(indices)].get(mode="clip")
    return jnp.where(mask, read, jnp.asarray(fill, x.dtype))


@lowers("aten.nonzero_static.default")
def nonzero_static(x, *, size, fill_value=-1):
    """nonzero_static(Tensor self, *, SymInt size, int fill_value=-1) -> Tensor"""
    if x.ndim == 0:
        return jnp.zeros((size, 0), default_int())
    found = jnp.nonzero(jax.lax.stop_gradient(x), size=size, fill_value=fill_value)
    return jnp.stack(found, -1).astype(default_int())


@lowers("aten.put.default")
def put(x, index, source, accumulate=False):
    """put(Tensor self, Tensor index, Tensor source, bool accumulate=False) -> Tensor"""
    place = x.reshape(-1).at[index.reshape(-1)]
    values = source.reshape(-1)
    return (place.add if accumulate else place.set)(values, mode="drop").reshape(x.shape)


@lowers("aten.take.default")
def take(x, index):
    """take(Tensor self, Tensor index) -> Tensor"""
    return jnp.take(x.reshape(-1), index, mode="fill")


@lowers("aten.take_along_dim.default")
def take_along_dim(x, indices, dim=None):
    """take_along_dim(Tensor self, Tensor indices, int? dim=None) -> Tensor"""
    if dim is None:
        return jnp.take(x.reshape(-1), indices.reshape(-1), mode="fill")
    return jnp.take_along_axis(x, indices, dim, mode="fill")
