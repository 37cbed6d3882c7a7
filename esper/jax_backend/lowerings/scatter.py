"""Scattering into tensors and into views (aten/src/ATen/native/ScatterGatherKernel.cpp, TensorShape.cpp).

An index out of range is dropped; see `indexing`.
"""

from __future__ import annotations

import sys
from functools import partial

import jax
import jax.numpy as jnp

from esper.jax_backend.axes import at_least_1d, axis
from esper.jax_backend.lowerings.indexing import gather
from esper.jax_backend.registry import lowers
from esper.jax_backend.slope import slope

_STEPS = {"sum": "add", "add": "add", "mean": "add", "prod": "multiply", "multiply": "multiply"}
_EXTREMES = {"amax": "max", "amin": "min"}


@lowers("aten.diagonal_scatter.default")
def diagonal_scatter(x, src, offset=0, dim1=0, dim2=1):
    """diagonal_scatter(Tensor self, Tensor src, int offset=0, int dim1=0, int dim2=1) -> Tensor"""
    moved = jnp.moveaxis(x, (dim1, dim2), (-2, -1))
    places = jnp.arange(src.shape[-1])
    moved = moved.at[..., places + max(-offset, 0), places + max(offset, 0)].set(src)
    return jnp.moveaxis(moved, (-2, -1), (dim1, dim2))


@lowers("aten.scatter.src", "aten.scatter.value")
def scatter(x, dim, index, src):
    """scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    return _scattered(x, dim, index, src, "set")


@lowers("aten.scatter_add.default")
def scatter_add(x, dim, index, src):
    """scatter_add(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    return _scattered(x, dim, index, src, "add")


@lowers("aten.scatter.reduce", "aten.scatter.value_reduce")
def scatter_reduce(x, dim, index, src, *, reduce):
    """scatter.reduce(Tensor self, int dim, Tensor index, Tensor src, *, str reduce) -> Tensor"""
    return _scattered(x, dim, index, src, _STEPS[reduce])


@lowers("aten.scatter_reduce.two")
def scatter_reduce_two(x, dim, index, src, reduce, *, include_self=True):
    """scatter_reduce.two(Tensor self, int dim, Tensor index, Tensor src, str reduce, *, bool include_self=True) -> Tensor"""  # noqa: E501
    if x.ndim == 0:
        one = scatter_reduce_two(x[None], 0, at_least_1d(index), at_least_1d(src), reduce, include_self=include_self)
        return one[0]
    dim, index = axis(x, dim), at_least_1d(index)
    src = _part(at_least_1d(src), index)
    hit = None if include_self else _scattered(jnp.zeros(x.shape, bool), dim, index, True, "set")
    if reduce in _EXTREMES:
        return _scattered_extreme(x, dim, index, src, reduce, hit)
    start = x if hit is None else jnp.where(hit, 1 if reduce == "prod" else 0, x)
    if reduce == "prod":
        return scattered_product(start, dim, index, src)
    out = _scattered(start, dim, index, src, "add")
    if reduce == "sum":
        return out
    ones = jnp.ones(index.shape, x.dtype)
    count = _scattered(jnp.full(x.shape, int(include_self), x.dtype), dim, index, ones, "add")
    count = jnp.maximum(count, 1)
    return out / count if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.floor_divide(out, count)


@lowers("aten.index_reduce.default")
def index_reduce(x, dim, index, source, reduce, *, include_self=True):
    """index_reduce(Tensor self, int dim, Tensor index, Tensor source, str reduce, *, bool include_self=True) -> Tensor"""  # noqa: E501
    if x.ndim == 0:
        return index_reduce(x[None], 0, index, at_least_1d(source), reduce, include_self=include_self)[0]
    dim = axis(x, dim)
    rows = at_least_1d(index).reshape(-1, *(1,) * (x.ndim - dim - 1))
    rows = jnp.broadcast_to(rows, source.shape)
    return scatter_reduce_two(x, dim, rows, source, reduce, include_self=include_self)


def _scattered_extreme(x, dim, index, src, reduce, replaced):
    """amax or amin, whose gradient is shared evenly among everything that attains it."""
    start = x if replaced is None else jnp.where(replaced, _bound(x.dtype, reduce), x)
    fixed = jax.lax.stop_gradient
    best = _scattered(fixed(start), dim, index, fixed(src), _EXTREMES[reduce])
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return best
    # Torch counts an equal `self` even where it takes no part.
    of_self = x == best
    own = jnp.where(of_self if replaced is None else of_self & ~replaced, slope(x), 0)
    return best + _shares(best, dim, index, src, src == gather(best, dim, index), of_self, own)


def scatter_extreme(start, dim, index, src, reduce):
    """The largest or smallest of `start` and what is scattered into it; the gradient goes to `src` alone."""
    fixed = jax.lax.stop_gradient
    best = _scattered(fixed(start), dim, index, fixed(src), reduce)
    wins = (src == gather(best, dim, index)) | jnp.isnan(src)
    return best + _shares(best, dim, index, src, wins, jnp.zeros(best.shape, bool), jnp.zeros_like(best))


def _shares(best, dim, index, src, wins, of_self, own):
    """Zero in value; in the gradient, a share for each of the winners."""
    count = _scattered(of_self.astype(best.dtype), dim, index, wins.astype(best.dtype), "add")
    return _scattered(own, dim, index, jnp.where(wins, slope(src), 0), "add") / jnp.maximum(count, 1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def scattered_product(x: jax.Array, dim: int, index: jax.Array, src: jax.Array) -> jax.Array:
    """`x` multiplied by the values of `src` where `index` points."""
    return _scattered(x, dim, index, src, "multiply")


@scattered_product.defjvp
def _scattered_product_jvp(dim, primals, tangents):
    """Each factor weighs the product of all the others, which is no quotient where it is zero."""
    (x, index, src), (by_x, _, by_src) = primals, tangents
    out = scattered_product(x, dim, index, src)
    others = scattered_product(jnp.ones_like(x), dim, index, src)
    zero = src == 0
    zeros = _scattered(jnp.zeros_like(x), dim, index, zero.astype(x.dtype), "add")
    alone = zero & (gather(zeros, dim, index) == 1)
    without = gather(scattered_product(x, dim, index, jnp.where(alone, 1, src)), dim, index)
    weight = jnp.where(alone, without, gather(out, dim, index) / jnp.where(zero, 1, src))
    return out, _scattered(others * by_x, dim, index, weight * by_src, "add")


def _bound(dtype, reduce):
    if jnp.issubdtype(dtype, jnp.inexact):
        return -jnp.inf if reduce == "amax" else jnp.inf
    info = jnp.iinfo(dtype)
    return info.min if reduce == "amax" else info.max


def _part(src, index):
    """The part of `src` that `index` covers."""
    for d in range(src.ndim):
        src = jax.lax.slice_in_dim(src, 0, index.shape[d], axis=d)
    return src


def _scattered(x, dim, index, src, how):
    if x.ndim == 0:
        return _scattered(x[None], 0, at_least_1d(index), at_least_1d(jnp.asarray(src)), how)[0]
    index = at_least_1d(index)
    place = [jax.lax.broadcasted_iota(index.dtype, index.shape, d) for d in range(x.ndim)]
    place[axis(x, dim)] = index
    src = _part(src, index) if jnp.ndim(src) else src
    return getattr(x.at[tuple(place)], how)(jnp.asarray(src, x.dtype), mode="drop")


@lowers("aten.select_scatter.default")
def select_scatter(x, src, dim, index):
    """select_scatter(Tensor self, Tensor src, int dim, SymInt index) -> Tensor"""
    dim = axis(x, dim)
    return jax.lax.dynamic_update_index_in_dim(x, src.astype(x.dtype), index, dim)


@lowers("aten.slice_scatter.default")
def slice_scatter(x, src, dim=0, start=None, end=None, step=1):
    """slice_scatter(Tensor self, Tensor src, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor"""  # noqa: E501
    dim, end = axis(x, dim), None if isinstance(end, int) and end == sys.maxsize else end
    src = src.astype(x.dtype)
    if end is None and step == 1 and start in (None, 0):
        return src
    if step == 1 and isinstance(x.shape[dim], int):
        first = slice(start, end).indices(x.shape[dim])[0]
        return jax.lax.dynamic_update_slice_in_dim(x, src, first, dim)
    return x.at[(slice(None),) * dim + (slice(start, end, step),)].set(src)
