"""Functions of three tensors, element by element (aten/src/ATen/native/PointwiseOps.cpp, Lerp.cpp)."""

from __future__ import annotations

import jax.numpy as jnp

from esper.jax_backend.promotion import promote, promote_to_float
from esper.jax_backend.registry import lowers


@lowers("aten.addcdiv.default")
def addcdiv(x, tensor1, tensor2, *, value=1):
    """addcdiv(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor"""
    x, tensor1, tensor2 = promote_to_float(x, tensor1, tensor2)
    return x + jnp.asarray(value, x.dtype) * (tensor1 / tensor2)


@lowers("aten.addcmul.default")
def addcmul(x, tensor1, tensor2, *, value=1):
    """addcmul(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor"""
    x, tensor1, tensor2 = promote(x, tensor1, tensor2)
    return x + jnp.asarray(value, x.dtype) * tensor1 * tensor2


@lowers("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(x, end, weight):
    """lerp.Tensor(Tensor self, Tensor end, Tensor weight) -> Tensor"""
    x, end = promote(x, end)
    weight = jnp.asarray(weight, x.dtype)
    # From the nearer end, so that both ends are met exactly.
    return jnp.where(jnp.abs(weight) < 0.5, x + weight * (end - x), end - (end - x) * (1 - weight))
