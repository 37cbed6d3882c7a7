"""Functions of two tensors, element by element (aten/src/ATen/native/BinaryOps.cpp, Pow.cpp)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy import special

from esper.jax_backend.lowerings.unary import magnitude
from esper.jax_backend.promotion import is_floating, is_inexact, promote, promote_to_float, result_type
from esper.jax_backend.registry import lowers


def _overloads(name, *overloads):
    return [f"aten.{name}.{overload}" for overload in overloads]


def _of_promoted(function):
    return lambda x, other: function(*promote(x, other))


def _of_promoted_to_float(function):
    return lambda x, other: function(*promote_to_float(x, other))


@jax.custom_jvp
def _atan2(x, other):
    return jnp.arctan2(x, other)


@_atan2.defjvp
def _atan2_jvp(primals, tangents):
    (x, other), (tx, to) = primals, tangents
    square = x * x + other * other
    scale = jnp.where(square == 0, 0, 1 / square)  # torch's derivative at the origin is 0
    return _atan2(x, other), (tx * other - to * x) * scale


def _extreme(function, loses):
    """`maximum` or `minimum` by torch's derivatives: halves where equal, whole for both where one is NaN."""

    @jax.custom_jvp
    def extreme(x, other):
        return function(x, other)

    @extreme.defjvp
    def extreme_jvp(primals, tangents):
        (x, other), (tx, to) = primals, tangents
        share = jnp.where(x == other, 0.5, 1.0).astype(x.dtype)
        mine, theirs = jnp.where(loses(x, other), 0, share), jnp.where(loses(other, x), 0, share)
        return extreme(x, other), tx * mine + to * theirs

    return lambda x, other: (extreme if is_inexact(x) else function)(x, other)


@jax.custom_jvp
def _logaddexp(x, other):
    return jnp.logaddexp(x, other)


@_logaddexp.defjvp
def _logaddexp_jvp(primals, tangents):
    """JAX's own rule is wrong where one operand is infinite."""
    (x, other), (tx, to) = primals, tangents
    return _logaddexp(x, other), tx * jax.nn.sigmoid(x - other) + to * jax.nn.sigmoid(other - x)


def _logaddexp2(x, other):
    return _logaddexp(x * math.log(2), other * math.log(2)) / math.log(2)


@jax.custom_jvp
def _power(x, exponent):
    return jnp.power(x, exponent)


@_power.defjvp
def _power_jvp(primals, tangents):
    """Torch's derivatives: 0 by the base where the exponent is 0, and by the exponent where the base is 0."""
    (x, exponent), (tx, te) = primals, tangents
    made = _power(x, exponent)
    by_base = jnp.where(exponent == 0, 0, exponent * _power(x, exponent - 1))
    by_exponent = jnp.where((x == 0) & (exponent.real >= 0), 0, made * jnp.log(x))
    return made, tx * by_base + te * by_exponent


@jax.custom_jvp
def _nextafter(x, other):
    return jnp.nextafter(x, other)


@_nextafter.defjvp
def _nextafter_jvp(primals, tangents):
    (x, other), (t, _) = primals, tangents
    return _nextafter(x, other), jnp.where(x == other, 0, t)


_ANY = ("Tensor", "Scalar", "Scalar_Tensor")
for _ops, _function in {
    (*_overloads("bitwise_and", *_ANY), *_overloads("__and__", "Tensor", "Scalar")): jnp.bitwise_and,
    (*_overloads("bitwise_or", *_ANY), *_overloads("__or__", "Tensor", "Scalar")): jnp.bitwise_or,
    (*_overloads("bitwise_xor", *_ANY), *_overloads("__xor__", "Tensor", "Scalar")): jnp.bitwise_xor,
    (
        *_overloads("bitwise_left_shift", "Tensor", "Tensor_Scalar", "Scalar_Tensor"),
        *_overloads("__lshift__", "Tensor", "Scalar"),
    ): jnp.left_shift,
    (
        *_overloads("bitwise_right_shift", "Tensor", "Tensor_Scalar", "Scalar_Tensor"),
        *_overloads("__rshift__", "Tensor", "Scalar"),
    ): jnp.right_shift,
    ("aten.fmod.Tensor", "aten.fmod.Scalar"): jax.lax.rem,
    ("aten.gcd.default",): jnp.gcd,
    ("aten.lcm.default",): jnp.lcm,
    ("aten.maximum.default", "aten.max.other"): _extreme(jnp.maximum, jnp.less),
    ("aten.minimum.default", "aten.min.other"): _extreme(jnp.minimum, jnp.greater),
    ("aten.nextafter.default",): _nextafter,
    tuple(_overloads("remainder", *_ANY)): jnp.remainder,
}.items():
    if _function is jax.lax.rem:  # the only one here that does not broadcast by itself
        _function = lambda x, other: jax.lax.rem(*jnp.broadcast_arrays(x, other))  # noqa: E731
    lowers(*_ops)(_of_promoted(_function))
for _ops, _function in {
    ("aten.atan2.default", "aten.arctan2.default"): _atan2,
    ("aten.logaddexp.default",): _logaddexp,
    ("aten.logaddexp2.default",): _logaddexp2,
    ("aten.special_gammainc.default", "aten.igamma.default"): special.gammainc,
    ("aten.special_gammaincc.default", "aten.igammac.default"): special.gammaincc,
}.items():
    lowers(*_ops)(_of_promoted_to_float(_function))
for _name, _function in {
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
}.items():
    lowers(f"aten.{_name}.default")(_function)


@lowers("aten.add.Tensor", "aten.add.Scalar")
def add(x, other, alpha=1):
    """add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    x, other = promote(x, other)
    return x + _times(other, alpha)


@lowers("aten.copysign.Tensor", "aten.copysign.Scalar")
def copysign(x, other):
    """copysign.Tensor(Tensor self, Tensor other) -> Tensor"""
    x, other = promote_to_float(x, other)
    return jnp.where(jnp.signbit(other), -magnitude(x), magnitude(x))


@lowers("aten.div.Tensor", "aten.div.Scalar", "aten.divide.Tensor", "aten.divide.Scalar")
@lowers("aten.true_divide.Tensor", "aten.true_divide.Scalar")
def div(x, other):
    """div.Tensor(Tensor self, Tensor other) -> Tensor"""
    x, other = promote_to_float(x, other)
    return x / other


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.divide.Tensor_mode", "aten.divide.Scalar_mode")
def div_mode(x, other, *, rounding_mode):
    """div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor"""
    if rounding_mode is None:
        return div(x, other)
    if rounding_mode == "floor":
        return floor_divide(x, other)
    x, other = jnp.broadcast_arrays(*promote(x, other))
    return jax.lax.stop_gradient(jnp.trunc(x / other) if is_inexact(x) else jax.lax.div(x, other))


@lowers("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(x, other):
    """floor_divide(Tensor self, Tensor other) -> Tensor"""
    x, other = jax.lax.stop_gradient(promote(x, other))
    quotient = jnp.floor_divide(x, other)
    # A floating division by zero is +-inf or NaN, as in x / 0.
    return jnp.where(other == 0, x / other, quotient) if is_floating(x) else quotient


@lowers("aten.float_power.Tensor_Tensor", "aten.float_power.Tensor_Scalar", "aten.float_power.Scalar")
def float_power(x, exponent):
    """float_power.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor"""
    return jnp.power(*(jnp.asarray(v, jax.dtypes.canonicalize_dtype(float)) for v in (x, exponent)))


@lowers("aten.fmax.default")
def fmax(x, other):
    """fmax(Tensor self, Tensor other) -> Tensor"""
    x, other = promote(x, other)
    return jnp.where((x >= other) | (other != other), x, other)


@lowers("aten.fmin.default")
def fmin(x, other):
    """fmin(Tensor self, Tensor other) -> Tensor"""
    x, other = promote(x, other)
    return jnp.where((x <= other) | (other != other), x, other)


@lowers("aten.heaviside.default")
def heaviside(x, values):
    """heaviside(Tensor self, Tensor values) -> Tensor"""
    return jnp.where(x == 0, values, (x > 0).astype(x.dtype))


@lowers("aten.hypot.default")
def hypot(x, other):
    """hypot(Tensor self, Tensor other) -> Tensor"""
    x, other = promote(x, other)
    # The larger factor is taken out so that squares neither overflow nor vanish.
    large = jax.lax.stop_gradient(jnp.fmax(jnp.abs(x), jnp.abs(other)))
    scale = jnp.where((large == 0) | jnp.isinf(large), jnp.ones_like(large), large)
    length = scale * jnp.sqrt(jnp.square(x / scale) + jnp.square(other / scale))
    return jnp.where(jnp.isinf(large), large, length)  # an infinite side outweighs NaN


@lowers("aten.ldexp.Tensor")
def ldexp(x, other):
    """ldexp.Tensor(Tensor self, Tensor other) -> Tensor"""
    x, other = promote_to_float(x, other)
    return x * jnp.exp2(other)


@lowers("aten.mul.Tensor", "aten.mul.Scalar", "aten.multiply.Tensor", "aten.multiply.Scalar")
def mul(x, other):
    """mul.Tensor(Tensor self, Tensor other) -> Tensor"""
    x, other = promote(x, other)
    return x * other


@lowers("aten.pow.Scalar", "aten.pow.Tensor_Tensor")
def pow_(x, exponent):
    """pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor"""
    x, exponent = promote(x, exponent)
    return _power(x, exponent) if is_inexact(x) else jnp.power(x, exponent)


@lowers("aten.pow.Tensor_Scalar")
def pow_scalar(x, exponent):
    """pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor"""
    x = x.astype(result_type(x, exponent))
    if isinstance(exponent, complex):
        return jnp.power(x, jnp.asarray(exponent, x.dtype))
    if exponent == 0.5:
        return jnp.sqrt(x)
    if exponent == int(exponent) and abs(exponent) <= 8:
        return jax.lax.integer_pow(x, int(exponent))
    return jnp.power(x, jnp.asarray(exponent, x.dtype))


@lowers("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(x, other, alpha=1):
    """rsub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    x, other = promote(x, other)
    return other - _times(x, alpha)


@lowers("aten.sub.Tensor", "aten.sub.Scalar", "aten.subtract.Tensor", "aten.subtract.Scalar")
def sub(x, other, alpha=1):
    """sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    x, other = promote(x, other)
    return x - _times(other, alpha)


def _times(x, alpha):
    return x if isinstance(alpha, int) and alpha == 1 else x * jnp.asarray(alpha, x.dtype)
