"""Cumulative operators (aten/src/ATen/native/ReduceOps.cpp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.jax_backend.axes import axis
from esper.jax_backend.promotion import default_int, in_float32, sum_type, to_float
from esper.jax_backend.registry import lowers


@lowers("aten.cummax.default")
def cummax(x, dim):
    """cummax(Tensor self, int dim) -> (Tensor values, Tensor indices)"""
    return _running(x, dim, jnp.greater_equal)


@lowers("aten.cummin.default")
def cummin(x, dim):
    """cummin(Tensor self, int dim) -> (Tensor values, Tensor indices)"""
    return _running(x, dim, jnp.less_equal)


def _running(x, dim, beats):
    if x.ndim == 0:
        return x, jnp.zeros((), default_int())
    dim = axis(x, dim)

    def later_of(left, right):
        # Among equals the latest counts; NaN beats everything.
        wins = beats(right[0], left[0]) & (left[0] == left[0]) | (right[0] != right[0])
        return tuple(jnp.where(wins, after, before) for before, after in zip(left, right, strict=True))

    places = jax.lax.broadcasted_iota(default_int(), x.shape, dim)
    indices = jax.lax.associative_scan(later_of, (jax.lax.stop_gradient(x), places), axis=dim)[1]
    return jnp.take_along_axis(x, indices, axis=dim), indices


@lowers("aten.cumprod.default")
def cumprod(x, dim, *, dtype=None):
    """cumprod(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    return _accumulated(jnp.cumprod, x, dim, dtype)


@lowers("aten.cumsum.default")
def cumsum(x, dim, *, dtype=None):
    """cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    return _accumulated(jnp.cumsum, x, dim, dtype)


def _accumulated(function, x, dim, dtype):
    x = x.astype(sum_type(x, dtype))
    return in_float32(function)(x, axis=dim) if x.ndim else x


@lowers("aten.logcumsumexp.default")
@in_float32
def logcumsumexp(x, dim):
    """logcumsumexp(Tensor self, int dim) -> Tensor"""
    x = to_float(x)
    return jax.lax.cumlogsumexp(x, axis(x, dim)) if x.ndim else x
