"""Order: sort, top-k, order statistics, binary search (aten/src/ATen/native/Sorting.cpp, Bucketization.cpp).

NaN sorts as the largest value. Every rule finds the places first, without a gradient, and then takes
the values there: the gradient goes to exactly the entries that were taken.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from esper.jax_backend.axes import axis
from esper.jax_backend.lowerings.reduction import pick, share
from esper.jax_backend.promotion import default_int, in_float32, is_inexact, promote
from esper.jax_backend.registry import lowers


@lowers("aten.argsort.default")
def argsort(x, dim=-1, descending=False):
    """argsort(Tensor self, int dim=-1, bool descending=False) -> Tensor"""
    return sort(x, dim, descending)[1]


@lowers("aten.argsort.stable")
def argsort_stable(x, *, stable, dim=-1, descending=False):
    """argsort.stable(Tensor self, *, bool stable, int dim=-1, bool descending=False) -> Tensor"""
    return sort(x, dim, descending)[1]


@lowers("aten.bucketize.Tensor", "aten.bucketize.Scalar")
def bucketize(x, boundaries, *, out_int32=False, right=False):
    """bucketize.Tensor(Tensor self, Tensor boundaries, *, bool out_int32=False, bool right=False) -> Tensor"""
    return searchsorted(boundaries, x, out_int32=out_int32, right=right)


@lowers("aten.kthvalue.default")
def kthvalue(x, k, dim=-1, keepdim=False):
    """kthvalue(Tensor self, SymInt k, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    return pick(x, dim, keepdim, lambda x, axis, keepdims: _ranked(x, axis, k - 1))


def _ranked(x, axis, rank):
    return jax.lax.slice_in_dim(jnp.argsort(x, axis=axis), rank, rank + 1, axis=axis)


@lowers("aten.median.default")
def median(x):
    """median(Tensor self) -> Tensor"""
    value = median_dim(x.reshape(-1), 0)[0]
    return share(x, value) if is_inexact(x) else value


@lowers("aten.median.dim")
def median_dim(x, dim, keepdim=False):
    """median.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"""

    def place(x, axis, keepdims):
        # The lower of two middle values; a NaN anywhere is the answer.
        middle = _ranked(x, axis, (x.shape[axis] - 1) // 2)
        nans = jnp.isnan(x)
        first = jnp.argmax(nans, axis=axis, keepdims=True)
        return jnp.where(jnp.any(nans, axis=axis, keepdims=True), first, middle)

    return pick(x, dim, keepdim, place)


@lowers("aten.mode.default")
def mode(x, dim=-1, keepdim=False):
    """mode(Tensor self, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)"""

    def place(x, axis, keepdims):
        order = jnp.argsort(x, axis=axis)
        ranked = jnp.take_along_axis(x, order, axis=axis)
        ranks = jax.lax.broadcasted_iota(order.dtype, x.shape, axis)
        starts = jax.lax.cummax(jnp.where(ranked != jnp.roll(ranked, 1, axis), ranks, 0), axis)
        # The smallest among the most frequent, where it occurs last.
        longest = jnp.argmax(ranks - starts, axis=axis, keepdims=True)
        return jnp.take_along_axis(order, longest, axis=axis)

    return pick(x, dim, keepdim, place)


@lowers("aten.msort.default")
def msort(x):
    """msort(Tensor self) -> Tensor"""
    return sort(x, 0)[0]


@lowers("aten.nanmedian.default")
def nanmedian(x):
    """nanmedian(Tensor self) -> Tensor"""
    value = nanmedian_dim(x.reshape(-1), 0)[0]
    return share(x, value) if is_inexact(x) else value


@lowers("aten.nanmedian.dim")
def nanmedian_dim(x, dim, keepdim=False):
    """nanmedian.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"""

    def place(x, axis, keepdims):
        known = jnp.sum(~jnp.isnan(x), axis=axis, keepdims=True)
        return jnp.take_along_axis(jnp.argsort(x, axis=axis), jnp.maximum(known - 1, 0) // 2, axis=axis)

    return pick(x, dim, keepdim, place)


@lowers("aten.quantile.default", "aten.quantile.scalar")
@in_float32
def quantile(x, q, dim=None, keepdim=False, *, interpolation="linear"):
    """quantile(Tensor self, Tensor q, int? dim=None, bool keepdim=False, *, str interpolation='linear') -> Tensor"""
    q = jnp.asarray(q, x.dtype)
    if x.ndim == 0:
        return jnp.quantile(x[None], q, method=interpolation)
    return jnp.quantile(x, q, axis=dim, keepdims=keepdim, method=interpolation)


@lowers("aten.searchsorted.Tensor", "aten.searchsorted.Scalar")
def searchsorted(sorted_sequence, x, *, out_int32=False, right=False, side=None, sorter=None):
    """searchsorted.Tensor(Tensor sorted_sequence, Tensor self, *, bool out_int32=False, bool right=False, str? side=None, Tensor? sorter=None) -> Tensor"""  # noqa: E501
    if sorter is not None:
        sorted_sequence = jnp.take_along_axis(sorted_sequence, sorter, axis=-1)
    sorted_sequence, x = promote(sorted_sequence, x)

    def find(row, values):
        return jnp.searchsorted(row, values, side=side or ("right" if right else "left"))

    if sorted_sequence.ndim == 1:
        found = find(sorted_sequence, x)
    else:
        rows = math.prod(x.shape[:-1])
        found = jax.vmap(find)(sorted_sequence.reshape(rows, -1), x.reshape(rows, -1)).reshape(x.shape)
    return found.astype(jnp.int32 if out_int32 else default_int())


@lowers("aten.sort.default")
def sort(x, dim=-1, descending=False):
    """sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""
    if x.ndim == 0:
        return x, jnp.zeros((), default_int())
    dim = axis(x, dim)
    indices = jnp.argsort(jax.lax.stop_gradient(x), axis=dim, descending=descending, stable=True)
    return jnp.take_along_axis(x, indices, axis=dim), indices.astype(default_int())


@lowers("aten.sort.stable")
def sort_stable(x, *, stable, dim=-1, descending=False):
    """sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""  # noqa: E501
    return sort(x, dim, descending)


@lowers("aten.topk.default")
def topk(x, k, dim=-1, largest=True, sorted=True):
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)"""  # noqa: E501
    if x.ndim == 0:
        return x, jnp.zeros((), default_int())
    dim = axis(x, dim)
    order = jnp.moveaxis(jax.lax.stop_gradient(x), dim, -1)
    if not largest:  # ~x and not -x for integers: the smallest has no negative
        order = -order if is_inexact(x) else ~order
    indices = jnp.moveaxis(jax.lax.top_k(order, k)[1], -1, dim)
    return jnp.take_along_axis(x, indices, axis=dim), indices.astype(default_int())
