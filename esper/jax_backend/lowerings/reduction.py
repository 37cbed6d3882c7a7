"""Reductions (aten/src/ATen/native/ReduceOps.cpp, ReduceAllOps.cpp, LinearAlgebra.cpp for norms)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from esper.errors import PrecisionError
from esper.jax_backend.axes import axes, axis
from esper.jax_backend.lowerings.unary import magnitude
from esper.jax_backend.promotion import default_int, in_float32, promote, sum_type, to_float
from esper.jax_backend.registry import lowers
from esper.jax_backend.slope import slope


@lowers("aten.all.default", "aten.all.dim", "aten.all.dims")
def all_(x, dim=None, keepdim=False):
    """all.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor"""
    return _truth(jnp.all, x, dim, keepdim)


@lowers("aten.any.default", "aten.any.dim", "aten.any.dims")
def any_(x, dim=None, keepdim=False):
    """any.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor"""
    return _truth(jnp.any, x, dim, keepdim)


def _truth(function, x, dim, keepdim):
    # Torch answers in uint8 for uint8, in bool for everything else.
    return function(x, axis=axes(x, dim), keepdims=keepdim).astype(x.dtype if x.dtype == jnp.uint8 else bool)


@lowers("aten.amax.default")
def amax(x, dim=(), keepdim=False):
    """amax(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor"""
    return jnp.max(x, axis=axes(x, dim), keepdims=keepdim)


@lowers("aten.amin.default")
def amin(x, dim=(), keepdim=False):
    """amin(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor"""
    return jnp.min(x, axis=axes(x, dim), keepdims=keepdim)


@lowers("aten.aminmax.default")
def aminmax(x, *, dim=None, keepdim=False):
    """aminmax(Tensor self, *, int? dim=None, bool keepdim=False) -> (Tensor min, Tensor max)"""
    return amin(x, dim, keepdim), amax(x, dim, keepdim)


@lowers("aten.argmax.default")
def argmax(x, dim=None, keepdim=False):
    """argmax(Tensor self, int? dim=None, bool keepdim=False) -> Tensor"""
    return _place(jnp.argmax, x, dim, keepdim)


@lowers("aten.argmin.default")
def argmin(x, dim=None, keepdim=False):
    """argmin(Tensor self, int? dim=None, bool keepdim=False) -> Tensor"""
    return _place(jnp.argmin, x, dim, keepdim)


def _place(function, x, dim, keepdim):
    if x.ndim == 0:
        return jnp.zeros((), default_int())
    return function(x, axis=dim, keepdims=keepdim).astype(default_int())


@lowers("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def count_nonzero(x, dim=None):
    """count_nonzero.dim_IntList(Tensor self, int[] dim) -> Tensor"""
    return jnp.sum(x != 0, axis=axes(x, dim), dtype=default_int())


@lowers("aten.dist.default")
def dist(x, other, p=2):
    """dist(Tensor self, Tensor other, Scalar p=2) -> Tensor"""
    x, other = promote(x, other)
    return vector_norm(x - other, p)


@lowers("aten.linalg_vector_norm.default")
def vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None):
    """linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""  # noqa: E501
    x = x if dtype is None else x.astype(dtype)
    return _norm(x, ord, axes(x, dim), keepdim)


@in_float32
def _norm(x, ord, over, keepdim):
    size = magnitude(x)
    if ord == math.inf:
        return jnp.max(size, axis=over, keepdims=keepdim)
    if ord == -math.inf:
        return jnp.min(size, axis=over, keepdims=keepdim)
    if ord == 0:
        return jnp.sum(size != 0, axis=over, keepdims=keepdim, dtype=size.dtype)
    if ord == 1:
        return jnp.sum(size, axis=over, keepdims=keepdim)
    if ord == 2:
        return safe_sqrt(jnp.sum(jnp.real(x * jnp.conj(x)), axis=over, keepdims=keepdim))
    if ord < 0:
        return jnp.sum(size**ord, axis=over, keepdims=keepdim) ** (1 / ord)
    return _safe_power(jnp.sum(_safe_power(size, ord), axis=over, keepdims=keepdim), 1 / ord)


def safe_sqrt(x):
    """The square root whose derivative at 0 is 0: torch's choice for norms and standard deviations."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def _safe_power(x, exponent):
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, x) ** exponent)


@lowers("aten.hash_tensor.default")
def hash_tensor(x, dim=(), *, keepdim=False, mode=0):
    """hash_tensor(Tensor self, int[1] dim=[], *, bool keepdim=False, int mode=0) -> Tensor"""
    if not jax.config.jax_enable_x64:
        raise PrecisionError("hash_tensor gives 64-bit numbers: turn JAX's 64-bit mode on (jax_enable_x64)")
    wide = x.astype(jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int64)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(wide), jnp.uint64)
    over = axes(x, dim)
    out = jax.lax.reduce(bits, jnp.zeros((), jnp.uint64), jax.lax.bitwise_xor, over)
    return jnp.expand_dims(out, over) if keepdim else out


@lowers("aten.logsumexp.default", "aten.special_logsumexp.default")
@in_float32
def logsumexp(x, dim, keepdim=False):
    """logsumexp(Tensor self, int[1] dim, bool keepdim=False) -> Tensor"""
    return jax.nn.logsumexp(to_float(x), axis=axes(x, dim), keepdims=keepdim)


@lowers("aten.max.default")
def max_(x):
    """max(Tensor self) -> Tensor"""
    return jnp.max(x)


@lowers("aten.max.dim")
def max_dim(x, dim, keepdim=False):
    """max.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    return pick(x, dim, keepdim, jnp.argmax)


@lowers("aten.mean.default")
def mean(x, *, dtype=None):
    """mean(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return mean_dim(x, None, dtype=dtype)


@lowers("aten.mean.dim")
def mean_dim(x, dim, keepdim=False, *, dtype=None):
    """mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return jnp.mean(x, axis=axes(x, dim), keepdims=keepdim, dtype=dtype or x.dtype)


@lowers("aten.min.default")
def min_(x):
    """min(Tensor self) -> Tensor"""
    return jnp.min(x)


@lowers("aten.min.dim")
def min_dim(x, dim, keepdim=False):
    """min.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    return pick(x, dim, keepdim, jnp.argmin)


def share(x, value):
    """`value`, one of the entries of `x`, with its gradient spread evenly over the entries equal to it."""
    value = jax.lax.stop_gradient(value)
    equal = (x == value) | (jnp.isnan(x) & jnp.isnan(value))
    return value + jnp.sum(jnp.where(equal, slope(x), 0)) / jnp.maximum(jnp.sum(equal), 1).astype(x.dtype)


def pick(x, dim, keepdim, place):
    """The entries that `place` points at along `dim`, and where they are; the gradient goes to these alone."""
    if x.ndim == 0:
        return x, jnp.zeros((), default_int())
    dim = axis(x, dim)
    indices = place(jax.lax.stop_gradient(x), axis=dim, keepdims=True)
    values = jnp.take_along_axis(x, indices, axis=dim)
    if not keepdim:
        values, indices = jnp.squeeze(values, dim), jnp.squeeze(indices, dim)
    return values, indices.astype(default_int())


@lowers("aten.nanmean.default")
def nanmean(x, dim=None, keepdim=False, *, dtype=None):
    """nanmean(Tensor self, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    total = nansum(x, dim, keepdim, dtype=dtype)
    return total / jnp.sum(~jnp.isnan(x), axis=axes(x, dim), keepdims=keepdim).astype(total.dtype)


@lowers("aten.nansum.default")
def nansum(x, dim=None, keepdim=False, *, dtype=None):
    """nansum(Tensor self, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return sum_dims(jnp.where(jnp.isnan(x), 0, x), dim, keepdim, dtype=dtype)


@lowers("aten.norm.Scalar")
def norm(x, p=2):
    """norm.Scalar(Tensor self, Scalar p=2) -> Tensor"""
    return vector_norm(x, p)


@lowers("aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dim_dtype")
def norm_dim(x, p, dim, keepdim=False, *, dtype=None):
    """norm.ScalarOpt_dim(Tensor self, Scalar? p, int[1] dim, bool keepdim=False) -> Tensor"""
    return vector_norm(x, 2 if p is None else p, dim, keepdim, dtype=dtype)


@lowers("aten.norm.ScalarOpt_dtype")
def norm_dtype(x, p, *, dtype):
    """norm.ScalarOpt_dtype(Tensor self, Scalar? p, *, ScalarType dtype) -> Tensor"""
    return vector_norm(x, 2 if p is None else p, dtype=dtype)


@lowers("aten.norm_except_dim.default")
def norm_except_dim(v, pow=2, dim=0):
    """norm_except_dim(Tensor v, int pow=2, int dim=0) -> Tensor"""
    if dim == -1:  # here that means every dimension
        return vector_norm(v, pow)
    return _norm(v, pow, tuple(axis for axis in range(v.ndim) if axis != dim), True)


@lowers("aten.prod.default")
def prod(x, *, dtype=None):
    """prod(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return jnp.prod(x, dtype=sum_type(x, dtype))


@lowers("aten.prod.dim_int")
def prod_dim(x, dim, keepdim=False, *, dtype=None):
    """prod.dim_int(Tensor self, int dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return jnp.prod(x, axis=axes(x, dim), keepdims=keepdim, dtype=sum_type(x, dtype))


@lowers("aten.std.default")
def std(x, unbiased=True):
    """std(Tensor self, bool unbiased=True) -> Tensor"""
    return std_correction(x, correction=int(unbiased))


@lowers("aten.std.dim")
def std_dim(x, dim, unbiased=True, keepdim=False):
    """std.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> Tensor"""
    return std_correction(x, dim, correction=int(unbiased), keepdim=keepdim)


@lowers("aten.std.correction")
def std_correction(x, dim=None, *, correction=None, keepdim=False):
    """std.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor"""
    return std_mean_correction(x, dim, correction=correction, keepdim=keepdim)[0]


@lowers("aten.std_mean.default")
def std_mean(x, unbiased=True):
    """std_mean(Tensor self, bool unbiased=True) -> (Tensor, Tensor)"""
    return std_mean_correction(x, correction=int(unbiased))


@lowers("aten.std_mean.dim")
def std_mean_dim(x, dim, unbiased=True, keepdim=False):
    """std_mean.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> (Tensor, Tensor)"""
    return std_mean_correction(x, dim, correction=int(unbiased), keepdim=keepdim)


@lowers("aten.std_mean.correction")
@in_float32
def std_mean_correction(x, dim=None, *, correction=None, keepdim=False):
    """std_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> (Tensor, Tensor)"""  # noqa: E501
    variance, average = var_mean_correction(x, dim, correction=correction, keepdim=keepdim)
    return safe_sqrt(variance), average


@lowers("aten.sum.default")
def sum_(x, *, dtype=None):
    """sum(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return sum_dims(x, None, dtype=dtype)


@lowers("aten.sum.dim_IntList")
def sum_dims(x, dim, keepdim=False, *, dtype=None):
    """sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return jnp.sum(x, axis=axes(x, dim), keepdims=keepdim, dtype=sum_type(x, dtype))


@lowers("aten.trace.default")
def trace(x):
    """trace(Tensor self) -> Tensor"""
    return jnp.trace(x, dtype=sum_type(x, None))


@lowers("aten.var.default")
def var(x, unbiased=True):
    """var(Tensor self, bool unbiased=True) -> Tensor"""
    return var_correction(x, correction=int(unbiased))


@lowers("aten.var.dim")
def var_dim(x, dim, unbiased=True, keepdim=False):
    """var.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> Tensor"""
    return var_correction(x, dim, correction=int(unbiased), keepdim=keepdim)


@lowers("aten.var.correction")
def var_correction(x, dim=None, *, correction=None, keepdim=False):
    """var.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor"""
    return var_mean_correction(x, dim, correction=correction, keepdim=keepdim)[0]


@lowers("aten.var_mean.default")
def var_mean(x, unbiased=True):
    """var_mean(Tensor self, bool unbiased=True) -> (Tensor, Tensor)"""
    return var_mean_correction(x, correction=int(unbiased))


@lowers("aten.var_mean.dim")
def var_mean_dim(x, dim, unbiased=True, keepdim=False):
    """var_mean.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> (Tensor, Tensor)"""
    return var_mean_correction(x, dim, correction=int(unbiased), keepdim=keepdim)


@lowers("aten.var_mean.correction")
@in_float32
def var_mean_correction(x, dim=None, *, correction=None, keepdim=False):
    """var_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> (Tensor, Tensor)"""  # noqa: E501
    over = axes(x, dim)
    average = jnp.mean(x, axis=over, keepdims=True)
    centred = x - average
    squares = jnp.sum(jnp.real(centred * jnp.conj(centred)), axis=over, keepdims=keepdim)
    count = math.prod(x.shape[a] for a in over) - (1 if correction is None else correction)
    return squares / jnp.asarray(count, squares.dtype), average if keepdim else jnp.squeeze(average, over)
