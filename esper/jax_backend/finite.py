"""The identity whose gradient is all or nothing: zero if any of it is not finite.

A function with a rule of its own for the backward alone (`jax.custom_vjp`) would not differentiate forwards,
and `jax.custom_derivatives.linear_call` does not batch: hence a primitive, linear, with its own transpose.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_finite = Primitive("finite_cotangent")


def finite_cotangent(value: jax.Array) -> jax.Array:
    """`value`; what flows back is selected away as a whole where any of it is inf or NaN.

    >>> jax.grad(lambda x: jnp.sqrt(finite_cotangent(x)).sum())(jnp.array([0.0, 4.0])).tolist()
    [0.0, 0.0]
    """
    return _finite.bind(value, batched=0)


def _transposed(cotangent: Any, value: Any, *, batched: int) -> list[Any]:
    if type(cotangent) is ad.Zero:
        return [cotangent]
    axes = tuple(range(batched, cotangent.ndim))
    return [jnp.where(jnp.isfinite(cotangent).all(axes, keepdims=True), cotangent, jnp.zeros_like(cotangent))]


def _batched(values: Any, axes: Any, *, batched: int) -> tuple[Any, int]:
    return _finite.bind(jnp.moveaxis(values[0], axes[0], 0), batched=batched + 1), 0


_finite.def_impl(lambda value, *, batched: value)
_finite.def_abstract_eval(lambda value, *, batched: value)
ad.deflinear2(_finite, _transposed)
batching.primitive_batchers[_finite] = _batched
mlir.register_lowering(_finite, lambda context, value, *, batched: [value])
