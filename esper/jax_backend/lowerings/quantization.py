"""Rounding to a grid as training for quantisation does (aten/src/ATen/native/quantized/FakeQuant*.cpp).

The gradient passes where the value is within the grid, as if nothing were rounded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.jax_backend.registry import lowers
from esper.jax_backend.slope import slope


@lowers("aten.fake_quantize_per_channel_affine_cachemask.default")
def fake_quantize_per_channel(x, scale, zero_point, axis, quant_min, quant_max):
    """fake_quantize_per_channel_affine_cachemask(Tensor self, Tensor scale, Tensor zero_point, int axis, int quant_min, int quant_max) -> (Tensor output, Tensor mask)"""  # noqa: E501
    shape = [-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]
    return _to_grid(x, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max)


@lowers("aten.fake_quantize_per_tensor_affine_cachemask.default")
def fake_quantize_per_tensor(x, scale, zero_point, quant_min, quant_max):
    """fake_quantize_per_tensor_affine_cachemask(Tensor self, float scale, int zero_point, int quant_min, int quant_max) -> (Tensor output, Tensor mask)"""  # noqa: E501
    return _to_grid(x, scale, zero_point, quant_min, quant_max)


@lowers("aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default")
def fake_quantize_by_tensors(x, scale, zero_point, fake_quant_enabled, quant_min, quant_max):
    """_fake_quantize_per_tensor_affine_cachemask_tensor_qparams(Tensor self, Tensor scale, Tensor zero_point, Tensor fake_quant_enabled, int quant_min, int quant_max) -> (Tensor output, Tensor mask)"""  # noqa: E501
    out, mask = _to_grid(x, scale.reshape(()), zero_point.reshape(()), quant_min, quant_max)
    enabled = fake_quant_enabled.reshape(()) != 0
    return jnp.where(enabled, out, x), mask | ~enabled


def _to_grid(x, scale, zero_point, quant_min, quant_max):
    scale = jax.lax.stop_gradient(jnp.asarray(scale, jnp.float32))
    value = jax.lax.stop_gradient(x).astype(jnp.float32)
    # The product with the inverse is what torch rounds, half to even.
    step = jnp.round(value * (1 / scale)) + jax.lax.stop_gradient(jnp.asarray(zero_point, jnp.float32))
    mask = (step >= quant_min) & (step <= quant_max)
    out = (jnp.clip(step, quant_min, quant_max) - zero_point) * scale
    return out.astype(x.dtype) + jnp.where(mask, slope(x), 0), mask
