"""New tensors (aten/src/ATen/native/TensorFactories.cpp, RangeFactories.cpp)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from esper.jax_backend.promotion import default_float, default_int, is_complex, is_inexact, result_type
from esper.jax_backend.registry import lowers


@lowers("aten.arange.default")
def arange(end, *, dtype=None):
    """arange(Scalar end, *, ScalarType? dtype=None, ...) -> Tensor"""
    return arange_step(0, end, 1, dtype=dtype)


@lowers("aten.arange.start")
def arange_start(start, end, *, dtype=None):
    """arange.start(Scalar start, Scalar end, *, ScalarType? dtype=None, ...) -> Tensor"""
    return arange_step(start, end, 1, dtype=dtype)


@lowers("aten.arange.start_step")
def arange_step(start, end, step=1, *, dtype=None):
    """arange.start_step(Scalar start, Scalar end, Scalar step=1, *, ScalarType? dtype=None, ...) -> Tensor"""
    if dtype is None:
        dtype = default_float() if any(isinstance(v, float) for v in (start, end, step)) else default_int()
    if any(isinstance(v, float) for v in (start, end, step)):
        # The length is decided in double precision, the values are start + i * step.
        length = max(0, int(np.ceil((np.float64(end) - np.float64(start)) / np.float64(step))))
        return jnp.asarray(np.float64(start) + np.arange(length) * np.float64(step), dtype)
    return jnp.arange(start, end, step, dtype=dtype)


@lowers("aten.empty.memory_format", "aten.zeros.default")
def zeros(size, *, dtype=None):
    """zeros(SymInt[] size, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.zeros(size, dtype or default_float())


@lowers("aten.empty_like.default", "aten.zeros_like.default")
def zeros_like(x, *, dtype=None):
    """zeros_like(Tensor self, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.zeros(x.shape, dtype or x.dtype)


@lowers("aten.empty_permuted.default")
def empty_permuted(size, physical_layout, *, dtype=None):
    """empty_permuted(SymInt[] size, int[] physical_layout, *, ScalarType? dtype=None, ...) -> Tensor"""
    return zeros(size, dtype=dtype)


@lowers("aten.empty_strided.default")
def empty_strided(size, stride, *, dtype=None):
    """empty_strided(SymInt[] size, SymInt[] stride, *, ScalarType? dtype=None, ...) -> Tensor"""
    return zeros(size, dtype=dtype)


@lowers("aten.eye.default")
def eye(n, *, dtype=None):
    """eye(SymInt n, *, ScalarType? dtype=None, ...) -> Tensor"""
    return eye_m(n, n, dtype=dtype)


@lowers("aten.eye.m")
def eye_m(n, m, *, dtype=None):
    """eye.m(SymInt n, SymInt m, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.eye(n, m, dtype=dtype or default_float())


@lowers("aten.fill.Scalar", "aten.fill.Tensor")
def fill(x, value):
    """fill.Scalar(Tensor self, Scalar value) -> Tensor"""
    return jnp.full(x.shape, value, x.dtype)


@lowers("aten.full.default")
def full(size, fill_value, *, dtype=None):
    """full(SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.full(size, fill_value, result_type(fill_value) if dtype is None else dtype)


@lowers("aten.full_like.default")
def full_like(x, fill_value, *, dtype=None):
    """full_like(Tensor self, Scalar fill_value, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.full(x.shape, fill_value, dtype or x.dtype)


@lowers("aten.linspace.default", "aten.linspace.Tensor_Scalar", "aten.linspace.Scalar_Tensor")
@lowers("aten.linspace.Tensor_Tensor")
def linspace(start, end, steps, *, dtype=None):
    """linspace(Scalar start, Scalar end, int steps, *, ScalarType? dtype=None, ...) -> Tensor"""
    dtype = dtype or (result_type(start, end) if is_complex(result_type(start, end)) else default_float())
    if not is_inexact(dtype):  # the step is rounded to nothing here, the values towards zero
        return jnp.trunc(jnp.linspace(start, end, steps, dtype=default_float())).astype(dtype)
    return jnp.linspace(start, end, steps, dtype=dtype)


@lowers("aten.logspace.default")
def logspace(start, end, steps, base=10.0, *, dtype=None):
    """logspace(Scalar start, Scalar end, int steps, float base=10.0, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.logspace(start, end, steps, base=base, dtype=dtype or default_float())


@lowers("aten.new_empty.default", "aten.new_zeros.default")
def new_zeros(x, size, *, dtype=None):
    """new_zeros(Tensor self, SymInt[] size, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.zeros(size, dtype or x.dtype)


@lowers("aten.new_empty_strided.default")
def new_empty_strided(x, size, stride, *, dtype=None):
    """new_empty_strided(Tensor self, SymInt[] size, SymInt[] stride, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.zeros(size, dtype or x.dtype)


@lowers("aten.new_full.default")
def new_full(x, size, fill_value, *, dtype=None):
    """new_full(Tensor self, SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.full(size, fill_value, dtype or x.dtype)


@lowers("aten.new_ones.default")
def new_ones(x, size, *, dtype=None):
    """new_ones(Tensor self, SymInt[] size, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.ones(size, dtype or x.dtype)


@lowers("aten.ones.default")
def ones(size, *, dtype=None):
    """ones(SymInt[] size, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.ones(size, dtype or default_float())


@lowers("aten.ones_like.default")
def ones_like(x, *, dtype=None):
    """ones_like(Tensor self, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.ones(x.shape, dtype or x.dtype)


@lowers("aten.scalar_tensor.default")
def scalar_tensor(s, *, dtype=None):
    """scalar_tensor(Scalar s, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jnp.asarray(s, dtype or default_float())


@lowers("aten.tril_indices.default")
def tril_indices(row, col, offset=0, *, dtype=None):
    """tril_indices(int row, int col, int offset=0, *, ScalarType? dtype=long, ...) -> Tensor"""
    return jnp.asarray(np.stack(np.tril_indices(row, offset, col)), dtype or default_int())


@lowers("aten.triu_indices.default")
def triu_indices(row, col, offset=0, *, dtype=None):
    """triu_indices(int row, int col, int offset=0, *, ScalarType? dtype=long, ...) -> Tensor"""
    return jnp.asarray(np.stack(np.triu_indices(row, offset, col)), dtype or default_int())
