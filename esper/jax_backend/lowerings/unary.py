"""Functions of one tensor, element by element (aten/src/ATen/native/UnaryOps.cpp)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy import special

from esper.jax_backend.lowerings.special import digamma, lgamma
from esper.jax_backend.promotion import in_float32, is_complex, is_floating, is_inexact, promote_to_float, to_float
from esper.jax_backend.registry import lowers
from esper.jax_backend.slope import slope


@jax.custom_jvp
def magnitude(x):
    """The absolute value, whose derivative at 0 is 0 as in torch."""
    return jnp.abs(x)


@magnitude.defjvp
def _magnitude_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    size = jnp.abs(x)
    if is_complex(x):
        return size, jnp.real(jnp.conj(x) * t) / jnp.where(size == 0, 1, size)
    return size, t * sign(x)


@jax.custom_jvp
def _i0(x):
    return special.i0(x)


@_i0.defjvp
def _i0_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return _i0(x), t * special.i1(x)


# Integers and booleans become floats in all of these.
_FLOAT = {
    "acos": jnp.arccos,
    "acosh": jnp.arccosh,
    "asin": jnp.arcsin,
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "atanh": jnp.arctanh,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "deg2rad": jnp.deg2rad,
    "digamma": in_float32(digamma),
    "erf": special.erf,
    "erfc": special.erfc,
    "erfinv": special.erfinv,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "i0": in_float32(_i0),
    "lgamma": in_float32(lgamma),
    "log": jnp.log,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "rad2deg": jnp.rad2deg,
    "reciprocal": jnp.reciprocal,
    "rsqrt": jax.lax.rsqrt,
    "sigmoid": jax.nn.sigmoid,
    "sin": jnp.sin,
    "sinc": in_float32(jnp.sinc),
    "sinh": jnp.sinh,
    "special_entr": in_float32(special.entr),
    "special_i0e": in_float32(special.i0e),
    "special_i1": in_float32(special.i1),
    "special_i1e": in_float32(special.i1e),
    "special_log_ndtr": in_float32(special.log_ndtr),
    "special_ndtr": in_float32(special.ndtr),
    "special_ndtri": in_float32(special.ndtri),
    "sqrt": jnp.sqrt,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
}
_ALIASES = {
    "acos": ("arccos",),
    "acosh": ("arccosh",),
    "asin": ("arcsin",),
    "asinh": ("arcsinh",),
    "atan": ("arctan",),
    "atanh": ("arctanh",),
    "digamma": ("special_digamma", "special_psi"),
    "erf": ("special_erf",),
    "erfc": ("special_erfc",),
    "erfinv": ("special_erfinv",),
    "exp2": ("special_exp2",),
    "expm1": ("special_expm1",),
    "i0": ("special_i0",),
    "lgamma": ("special_gammaln",),
    "log1p": ("special_log1p",),
    "sigmoid": ("special_expit",),
    "sinc": ("special_sinc",),
}


def _of_float(function):
    return lambda x: function(to_float(x))


for _name, _function in _FLOAT.items():
    lowers(*(f"aten.{name}.default" for name in (_name, *_ALIASES.get(_name, ()))))(_of_float(_function))

# The dtype stays (integers are their own floor), or is bool.
for _name, _function in {
    "aten.bitwise_not.default": jnp.bitwise_not,
    "aten.isfinite.default": jnp.isfinite,
    "aten.isinf.default": jnp.isinf,
    "aten.isnan.default": jnp.isnan,
    "aten.isneginf.default": jnp.isneginf,
    "aten.isposinf.default": jnp.isposinf,
    "aten.isreal.default": jnp.isreal,
    "aten.logical_not.default": jnp.logical_not,
    "aten.signbit.default": lambda x: jnp.signbit(x) if is_floating(x) else x < jnp.zeros((), x.dtype),
}.items():
    lowers(_name)(_function)
for _name, _function in {"ceil": jnp.ceil, "floor": jnp.floor, "round": jnp.round, "trunc": jnp.trunc}.items():
    lowers(f"aten.{_name}.default")(lambda x, function=_function: function(x) if is_inexact(x) else x)
lowers("aten.fix.default")(lambda x: jnp.trunc(x) if is_inexact(x) else x)
for _name in ("neg", "negative", "_neg_view", "_neg_view_copy"):
    lowers(f"aten.{_name}.default")(jnp.negative)
lowers("aten.positive.default")(lambda x: x)


@lowers("aten.abs.default", "aten.absolute.default")
def abs_(x):
    """abs(Tensor self) -> Tensor"""
    return magnitude(x)


@lowers("aten.angle.default")
def angle(x):
    """angle(Tensor self) -> Tensor"""
    if is_complex(x):  # torch's derivative at 0 is 0
        return jnp.where(x == 0, jax.lax.stop_gradient(jnp.angle(x)), jnp.angle(jnp.where(x == 0, 1, x)))
    # A real angle is constant on either side of zero; NaN stays.
    x = to_float(x)
    return jax.lax.stop_gradient(jnp.where(jnp.isnan(x), x, jnp.where(x < 0, math.pi, 0.0).astype(x.dtype)))


@lowers("aten.frac.default")
def frac(x):
    """frac(Tensor self) -> Tensor"""
    return x - jnp.trunc(x)


@lowers("aten.frexp.Tensor")
def frexp(x):
    """frexp.Tensor(Tensor self) -> (Tensor mantissa, Tensor exponent)"""
    value = jax.lax.stop_gradient(x)
    mantissa, exponent = jnp.frexp(value)
    exponent = jnp.where(jnp.isfinite(x), exponent, 0).astype(jnp.int32)
    scale = jnp.exp2(-exponent.astype(x.dtype))
    return jnp.where(jnp.isfinite(x), mantissa, value).astype(x.dtype) + slope(x) * scale, exponent


@lowers("aten.logit.default", "aten.special_logit.default")
@in_float32
def logit(x, eps=None):
    """logit(Tensor self, float? eps=None) -> Tensor"""
    x = to_float(x)
    if eps is not None:
        x = jnp.where(x < eps, eps, jnp.where(x > 1 - eps, 1 - eps, x))
    return jnp.log(x / (1 - x))


@lowers("aten.mvlgamma.default", "aten.special_multigammaln.default")
@in_float32
def mvlgamma(x, p):
    """mvlgamma(Tensor self, int p) -> Tensor"""
    return special.multigammaln(to_float(x), p)


@lowers("aten.nan_to_num.default")
def nan_to_num(x, nan=None, posinf=None, neginf=None):
    """nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor"""
    if not is_inexact(x):
        return x
    return jnp.nan_to_num(x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf)


@lowers("aten.round.decimals", "aten.special_round.default")
def round_decimals(x, *, decimals=0):
    """round.decimals(Tensor self, *, int decimals) -> Tensor"""
    if not is_inexact(x):
        return x
    scale = 10.0 ** abs(decimals)
    return jnp.round(x * scale) / scale if decimals >= 0 else jnp.round(x / scale) * scale


@lowers("aten.sgn.default")
def sgn(x):
    """sgn(Tensor self) -> Tensor"""
    if not is_complex(x):
        return sign(x)
    other = jnp.where(x == 0, 1, x)  # torch's derivative at 0 is 0
    return jnp.where(x == 0, 0, other / jnp.abs(other))


@lowers("aten.sign.default")
def sign(x):
    """sign(Tensor self) -> Tensor"""
    # Torch's sign of NaN is 0.
    return x if x.dtype == bool else jax.lax.stop_gradient((x > 0).astype(x.dtype) - (x < 0).astype(x.dtype))


@lowers("aten.square.default")
def square(x):
    """square(Tensor self) -> Tensor"""
    return jnp.square(x.astype(jnp.int32) if x.dtype == bool else x)


@lowers("aten.xlogy.Tensor", "aten.xlogy.Scalar_Self", "aten.xlogy.Scalar_Other")
@lowers("aten.special_xlogy.default", "aten.special_xlogy.self_scalar", "aten.special_xlogy.other_scalar")
def xlogy(x, other):
    """xlogy.Tensor(Tensor self, Tensor other) -> Tensor"""
    x, other = promote_to_float(x, other)
    # Torch's derivative by x is 0 where log(other) has no finite value and x is 0.
    return special.xlogy(jnp.where((x == 0) & (other <= 0), jax.lax.stop_gradient(x), x), other)


@lowers("aten.special_xlog1py.default", "aten.special_xlog1py.self_scalar", "aten.special_xlog1py.other_scalar")
def xlog1py(x, other):
    """special_xlog1py(Tensor self, Tensor other) -> Tensor"""
    x, other = promote_to_float(x, other)
    return special.xlog1py(jnp.where((x == 0) & (other <= -1), jax.lax.stop_gradient(x), x), other)
