"""Scattering into tensors and into views (aten/src/ATen/native/ScatterGatherKernel.cpp, TensorShape.cpp).

An index out of range is dropped; see `indexing`.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from esper.jax_backend.axes import at_least_1d, axis
from esper.jax_backend.registry import lowers

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
    src = _part(src, index)
    if reduce in _EXTREMES:
        return _scattered_extreme(x, dim, index, src, reduce, include_self)
    hit = _scattered(jnp.zeros(x.shape, bool), dim, index, True, "set")
    start = x if include_self else jnp.where(hit, 1 if reduce == "prod" else 0, x)
    out = _scattered(start, dim, index, src, _STEPS[reduce])
    if reduce != "mean":
        return out
    ones = jnp.ones(index.shape, x.dtype)
    count = _scattered(jnp.full(x.shape, int(include_self), x.dtype), dim, index, ones, "add")
    count = jnp.maximum(count, 1)
    return out / count if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.floor_divide(out, count)


def _scattered_extreme(x, dim, index, src, reduce, include_self):
    """amax or amin, whose gradient is shared evenly among everything that attains it."""
    hit = _scattered(jnp.zeros(x.shape, bool), dim, index, True, "set")
    lowest = _bound(x.dtype, reduce)
    start = x if include_self else jnp.where(hit, lowest, x)
    fixed = jax.lax.stop_gradient
    best = _scattered(fixed(start), dim, index, fixed(src), _EXTREMES[reduce])
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return best
    of_src = src == jnp.take_along_axis(best, index, axis(x, dim))
    # Torch counts an equal `self` even where it takes no part.
    count = _scattered((x == best).astype(x.dtype), dim, index, of_src.astype(x.dtype), "add")
    of_self = (x == best) & (include_self | ~hit)
    # Zero in value; in the gradient, a share for each of the winners.
    shares = _scattered(jnp.where(of_self, x - fixed(x), 0), dim, index, jnp.where(of_src, src - fixed(src), 0), "add")
    return best + shares / jnp.maximum(count, 1)


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
