"""Dtype conversion, copies and aliases, complex parts (aten/src/ATen/native/TensorConversions.cpp, ComplexHelper.h)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.jax_backend.promotion import is_complex, is_floating, promote
from esper.jax_backend.registry import lowers

_SMALL = ("int8", "int16", "uint8")

# Arrays are immutable: a copy, an alias and a change of strides are the array itself.
for _name in (
    "alias.default",
    "alias_copy.default",
    "clone.default",
    "contiguous.default",
    "lift.default",
    "lift_fresh.default",
    "lift_fresh_copy.default",
    "resolve_conj.default",
    "resolve_neg.default",
):
    lowers(f"aten.{_name}")(lambda x: x)
for _name in (
    *("aten.conj", "aten._conj", "aten._conj_copy", "aten._conj_physical", "aten.conj_physical"),
    "prims.conj_physical",
):
    lowers(f"{_name}.default")(lambda x: jnp.conj(x) if is_complex(x) else x)


def cast(x, dtype):
    """`x` in `dtype`, with C's truncation and wrap-around where JAX would saturate."""
    if x.dtype == dtype:
        return x
    if is_complex(x) and not is_complex(dtype) and not jnp.issubdtype(dtype, bool):
        x = jnp.real(x)
    if is_floating(x) and dtype in _SMALL:
        x = x.astype(jnp.int32)
    if dtype == jnp.float8_e4m3fn:  # it has no infinity: torch stops at the largest value
        x = jnp.clip(x, -448, 448)
    return x.astype(dtype)


@lowers("aten.complex.default")
def complex_(real, imag):
    """complex(Tensor real, Tensor imag) -> Tensor"""
    return jax.lax.complex(*jnp.broadcast_arrays(*promote(real, imag)))


@lowers("aten.copy.default")
def copy(x, src, non_blocking=False):
    """copy(Tensor self, Tensor src, bool non_blocking=False) -> Tensor"""
    return jnp.broadcast_to(cast(src, x.dtype), x.shape)


@lowers("aten.detach.default", "aten.detach_copy.default")
def detach(x):
    """detach(Tensor(a) self) -> Tensor(a)"""
    return jax.lax.stop_gradient(x)


@lowers("aten.imag.default")
def imag(x):
    """imag(Tensor(a) self) -> Tensor(a)"""
    return jnp.imag(x)


@lowers("aten.polar.default")
def polar(abs, angle):
    """polar(Tensor abs, Tensor angle) -> Tensor"""
    return jax.lax.complex(abs * jnp.cos(angle), abs * jnp.sin(angle))


@lowers("aten.real.default")
def real(x):
    """real(Tensor(a) self) -> Tensor(a)"""
    return jnp.real(x)


@lowers("aten._to_copy.default")
def to_copy(x, *, dtype=None, non_blocking=False):
    """_to_copy(Tensor self, *, ScalarType? dtype=None, ...) -> Tensor"""
    return x if dtype is None else cast(x, dtype)


@lowers("aten.to.device")
def to_device(x, device, dtype, non_blocking=False, copy=False, memory_format=None):
    """to.device(Tensor(a) self, Device device, ScalarType dtype, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)"""  # noqa: E501
    return cast(x, dtype)


@lowers("aten.to.dtype")
def to_dtype(x, dtype, non_blocking=False, copy=False, memory_format=None):
    """to.dtype(Tensor(a) self, ScalarType dtype, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)"""  # noqa: E501
    return cast(x, dtype)


@lowers("aten.to.dtype_layout")
def to_dtype_layout(x, *, dtype=None, non_blocking=False, copy=False):
    """to.dtype_layout(Tensor(a) self, *, ScalarType? dtype=None, ...) -> Tensor(a)"""
    return x if dtype is None else cast(x, dtype)


@lowers("aten.to.other")
def to_other(x, other, non_blocking=False, copy=False, memory_format=None):
    """to.other(Tensor(a) self, Tensor other, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)"""  # noqa: E501
    return cast(x, other.dtype)


@lowers("aten.type_as.default")
def type_as(x, other):
    """type_as(Tensor self, Tensor other) -> Tensor"""
    return cast(x, other.dtype)


@lowers("aten.view_as_complex.default", "aten.view_as_complex_copy.default")
def view_as_complex(x):
    """view_as_complex(Tensor(a) self) -> Tensor(a)"""
    return jax.lax.complex(x[..., 0], x[..., 1])


@lowers("aten.view_as_real.default", "aten.view_as_real_copy.default")
def view_as_real(x):
    """view_as_real(Tensor(a) self) -> Tensor(a)"""
    return jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)
