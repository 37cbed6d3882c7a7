"""Activations (aten/src/ATen/native/Activation.cpp, SoftMax.cpp)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from esper.jax_backend.axes import axis
from esper.jax_backend.platform.fence import fenced
from esper.jax_backend.promotion import in_float32
from esper.jax_backend.registry import lowers

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946

# The bounds below are compared so that the derivative at a kink is torch's, and NaN stays NaN.


@lowers("aten.celu.default")
def celu(x, alpha=1.0):
    """celu(Tensor self, Scalar alpha=1.) -> Tensor"""
    return elu(x, alpha, 1, 1 / alpha)


@lowers("aten.elu.default")
@in_float32
def elu(x, alpha=1, scale=1, input_scale=1):
    """elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor"""
    negative = jnp.where(x > 0, 0, x)  # or expm1 overflows, and its gradient is NaN
    return jnp.where(x > 0, x * scale, jnp.expm1(negative * input_scale) * (alpha * scale))


@lowers("aten.gelu.default")
@in_float32
def gelu(x, *, approximate="none"):
    """gelu(Tensor self, *, str approximate='none') -> Tensor"""
    return _gelu_tanh(x) if approximate == "tanh" else _gelu(x)


def _with_slope(value, slope):
    """A function of x whose slope is made in one pass with its value, where a gradient is wanted.

    The backward keeps the slope alone. Not fenced, XLA would make it there, and take all exponentials again.
    """
    both = fenced(lambda x: (value(x), slope(x)))
    function = jax.custom_jvp(value)

    @function.defjvp
    def jvp(primals, tangents):
        out, along = both(*primals)
        return out, along * tangents[0]

    return function


def _below(x):
    """The normal distribution's share below x."""
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


_gelu = _with_slope(
    lambda x: x * _below(x),
    lambda x: _below(x) + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)),
)


def _gelu_tanh_slope(x):
    tanh = jnp.tanh(_gelu_inner(x))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + tanh + x * (1 - tanh * tanh) * inner)


_gelu_tanh = _with_slope(lambda x: 0.5 * x * (1 + jnp.tanh(_gelu_inner(x))), _gelu_tanh_slope)


def _gelu_inner(x):
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


@lowers("aten.glu.default")
@in_float32
def glu(x, dim=-1):
    """glu(Tensor self, int dim=-1) -> Tensor"""
    return jax.nn.glu(x, axis(x, dim))


@lowers("aten.hardshrink.default")
def hardshrink(x, lambd=0.5):
    """hardshrink(Tensor self, Scalar lambd=0.5) -> Tensor"""
    return jnp.where((x >= -lambd) & (x <= lambd), 0, x)


@lowers("aten.hardsigmoid.default")
@in_float32
def hardsigmoid(x):
    """hardsigmoid(Tensor self) -> Tensor"""
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, x / 6 + 0.5))


@lowers("aten.hardswish.default")
@in_float32
def hardswish(x):
    """hardswish(Tensor self) -> Tensor"""
    return x * jnp.where(x <= -3, 0, jnp.where(x >= 3, 6, x + 3)) / 6


@lowers("aten.hardtanh.default")
def hardtanh(x, min_val=-1, max_val=1):
    """hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor"""
    return jnp.where(x <= min_val, min_val, jnp.where(x >= max_val, max_val, x)).astype(x.dtype)


@lowers("aten.leaky_relu.default")
def leaky_relu(x, negative_slope=0.01):
    """leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor"""
    return jnp.where(x > 0, x, x * negative_slope)


@lowers("aten.log_sigmoid.default")
@in_float32
def log_sigmoid(x):
    """log_sigmoid(Tensor self) -> Tensor"""
    return jax.nn.log_sigmoid(x)


@lowers("aten.log_sigmoid_forward.default")
def log_sigmoid_forward(x):
    """log_sigmoid_forward(Tensor self) -> (Tensor output, Tensor buffer)"""
    return log_sigmoid(x), jnp.exp(-jnp.abs(x))


@lowers("aten.log_softmax.int", "aten.special_log_softmax.default")
def log_softmax(x, dim, dtype=None):
    """log_softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor"""
    return _softmax_in(jax.nn.log_softmax, x, dim, dtype)


@lowers("aten._log_softmax.default")
def log_softmax_half(x, dim, half_to_float):
    """_log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    return _softmax_in(jax.nn.log_softmax, x, dim, jnp.float32 if half_to_float else None)


@lowers("aten.mish.default")
@in_float32
def mish(x):
    """mish(Tensor self) -> Tensor"""
    return jax.nn.mish(x)


@lowers("aten.prelu.default")
def prelu(x, weight):
    """prelu(Tensor self, Tensor weight) -> Tensor"""
    if weight.ndim == 1 and x.ndim > 1:  # one slope for each channel
        weight = weight.reshape(-1, *(1,) * (x.ndim - 2))
    return prelu_kernel(x, weight.reshape(()) if x.ndim == 0 else weight)


@lowers("aten._prelu_kernel.default")
def prelu_kernel(x, weight):
    """_prelu_kernel(Tensor self, Tensor weight) -> Tensor"""
    return jnp.where(x > 0, x, weight * x)


@lowers("aten.relu.default")
def relu(x):
    """relu(Tensor self) -> Tensor"""
    # Not a maximum: torch's gradient is that of the condition, so 0 at 0 and 1 at NaN.
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@lowers("aten.relu6.default")
def relu6(x):
    """relu6(Tensor self) -> Tensor"""
    return hardtanh(x, 0, 6)


@lowers("aten.rrelu.default", draws=lambda x, lower=0.125, upper=1 / 3, training=False, **_: training)
def rrelu(x, lower=0.125, upper=1 / 3, training=False, *, key=None):
    """rrelu(Tensor self, Scalar lower=0.125, Scalar upper=0.3333333333333333, bool training=False, Generator? generator=None) -> Tensor"""  # noqa: E501
    if key is None:
        return leaky_relu(x, (lower + upper) / 2)
    return jnp.where(x <= 0, x * jax.random.uniform(key, x.shape, x.dtype, lower, upper), x)


@lowers("aten._safe_softmax.default")
def safe_softmax(x, dim, dtype=None):
    """_safe_softmax(Tensor self, int dim, ScalarType? dtype=None) -> Tensor"""
    # A row without any finite entry gives zeros, not NaN, and so does its gradient.
    masked = jnp.all(x == -jnp.inf, axis=axis(x, dim), keepdims=True)
    return jnp.where(masked, 0, softmax(jnp.where(masked, 0, x), dim, dtype))


@lowers("aten.selu.default")
def selu(x):
    """selu(Tensor self) -> Tensor"""
    return elu(x, _SELU_ALPHA, _SELU_SCALE)


@lowers("aten.silu.default")
@in_float32
def silu(x):
    """silu(Tensor self) -> Tensor"""
    return jax.nn.silu(x)


@lowers("aten.softmax.int", "aten.special_softmax.default")
def softmax(x, dim, dtype=None):
    """softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor"""
    return _softmax_in(jax.nn.softmax, x, dim, dtype)


@lowers("aten._softmax.default")
def softmax_half(x, dim, half_to_float):
    """_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    return _softmax_in(jax.nn.softmax, x, dim, jnp.float32 if half_to_float else None)


def _softmax_in(function, x, dim, dtype):
    x = x if dtype is None else x.astype(dtype)
    if x.ndim == 0:
        return function(x[None])[0]
    return in_float32(function)(x, axis=axis(x, dim))


@lowers("aten.softplus.default")
@in_float32
def softplus(x, beta=1, threshold=20):
    """softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor"""
    scaled = x * beta
    return jnp.where(scaled > threshold, x, jax.nn.softplus(scaled) / beta)


@lowers("aten.softshrink.default")
def softshrink(x, lambd=0.5):
    """softshrink(Tensor self, Scalar lambd=0.5) -> Tensor"""
    return jnp.where(x > lambd, x - lambd, jnp.where(x < -lambd, x + lambd, x * 0))


@lowers("aten.threshold.default")
def threshold(x, threshold, value):
    """threshold(Tensor self, Scalar threshold, Scalar value) -> Tensor"""
    return jnp.where(x <= threshold, jnp.asarray(value, x.dtype), x)
