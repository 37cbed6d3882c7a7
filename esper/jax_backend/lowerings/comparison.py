"""Comparisons, and choices by a condition (aten/src/ATen/native/TensorCompare.cpp)."""

from __future__ import annotations

import jax.numpy as jnp

from esper.jax_backend.promotion import promote
from esper.jax_backend.registry import lowers


def _compare(function):
    return lambda x, other: function(*promote(x, other))


for _names, _function in {
    ("eq",): jnp.equal,
    ("ge", "greater_equal"): jnp.greater_equal,
    ("gt", "greater"): jnp.greater,
    ("le", "less_equal"): jnp.less_equal,
    ("lt", "less"): jnp.less,
    ("ne", "not_equal"): jnp.not_equal,
}.items():
    lowers(*(f"aten.{name}.{kind}" for name in _names for kind in ("Tensor", "Scalar")))(_compare(_function))


@lowers("aten.clamp.default", "aten.clamp.Tensor", "aten.clip.default", "aten.clip.Tensor")
def clamp(x, min=None, max=None):
    """clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor"""
    x, *bounds = promote(x, *(bound for bound in (min, max) if bound is not None))
    given = iter(bounds)
    # The comparisons are so that NaN stays, and that a bound met exactly lets the whole gradient through.
    if min is not None:
        low = next(given)
        x = jnp.where((x >= low) | (x != x), x, low)
    if max is not None:
        high = next(given)
        x = jnp.where((x <= high) | (x != x), x, high)
    return x


@lowers("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(x, max):
    """clamp_max(Tensor self, Scalar max) -> Tensor"""
    return clamp(x, None, max)


@lowers("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(x, min):
    """clamp_min(Tensor self, Scalar min) -> Tensor"""
    return clamp(x, min)


@lowers("aten.isclose.default")
def isclose(x, other, rtol=1e-05, atol=1e-08, equal_nan=False):
    """isclose(Tensor self, Tensor other, float rtol=1e-05, float atol=1e-08, bool equal_nan=False) -> Tensor"""
    return jnp.isclose(x, other, rtol=rtol, atol=atol, equal_nan=equal_nan)


@lowers("aten.isin.Tensor_Tensor", "aten.isin.Tensor_Scalar", "aten.isin.Scalar_Tensor")
def isin(elements, test_elements, *, assume_unique=False, invert=False):
    """isin.Tensor_Tensor(Tensor elements, Tensor test_elements, *, bool assume_unique=False, bool invert=False) -> Tensor"""  # noqa: E501
    return jnp.isin(*promote(elements, test_elements), assume_unique=assume_unique, invert=invert)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x, mask, value):
    """masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor"""
    return jnp.where(mask, jnp.asarray(value, x.dtype), x)


@lowers("aten.where.self", "aten.where.Scalar", "aten.where.ScalarSelf", "aten.where.ScalarOther")
def where(condition, x, other):
    """where.self(Tensor condition, Tensor self, Tensor other) -> Tensor"""
    x, other = promote(x, other)
    return jnp.where(condition if condition.dtype == bool else condition != 0, x, other)
