"""Elementwise functions: each row runs several dtypes, a 0-d and an empty tensor through one capture."""

import math

import pytest
import torch
from parity_checks import check

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INF, NAN = math.inf, math.nan


def several(function, values, dtypes, gradients=True):
    """The function of `values` in every dtype, without dimensions, and of nothing."""
    tensor = torch.tensor(values)
    inputs = [tensor.to(dtype) for dtype in dtypes]
    inputs += [tensor[1].to(dtypes[0]), torch.zeros(2, 0, dtype=dtypes[0])]
    return check(lambda *xs: tuple(function(x) for x in xs), *inputs, gradients=gradients)


ANYWHERE = [-2.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.5, 3.0]
WITHIN_ONE = [-0.9, -0.5, -0.1, 0.0, 0.1, 0.5, 0.9, 0.25]
POSITIVE = [0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5]
NOT_ZERO = [-2.5, -1.0, -0.5, 0.25, 0.5, 1.0, 2.0, 3.0]
ALL_DTYPES = (*FLOATS, torch.int64, torch.int8, torch.bool)
WITH_INTEGERS = (*FLOATS, torch.int64)

FLOAT_UNARY = [
    (torch.acos, WITHIN_ONE),
    (torch.acosh, [1.5, 2.0, 3.0, 4.0]),
    (torch.asin, WITHIN_ONE),
    (torch.asinh, ANYWHERE),
    (torch.atan, ANYWHERE),
    (torch.atanh, WITHIN_ONE),
    (torch.cos, ANYWHERE),
    (torch.cosh, ANYWHERE),
    (torch.deg2rad, ANYWHERE),
    (torch.digamma, POSITIVE),
    (torch.erf, ANYWHERE),
    (torch.erfc, ANYWHERE),
    (torch.erfinv, WITHIN_ONE),
    (torch.exp, ANYWHERE),
    (torch.exp2, ANYWHERE),
    (torch.expm1, ANYWHERE),
    (torch.i0, ANYWHERE),
    (torch.lgamma, POSITIVE),
    (torch.log, POSITIVE),
    (torch.log10, POSITIVE),
    (torch.log1p, POSITIVE),
    (torch.log2, POSITIVE),
    (torch.rad2deg, WITHIN_ONE),
    (torch.reciprocal, POSITIVE),
    (torch.rsqrt, POSITIVE),
    (torch.sigmoid, ANYWHERE),
    (torch.sin, ANYWHERE),
    (torch.sinc, ANYWHERE),
    (torch.sinh, ANYWHERE),
    (torch.sqrt, POSITIVE),
    (torch.tan, WITHIN_ONE),
    (torch.tanh, ANYWHERE),
    (torch.logit, [0.1, 0.25, 0.5, 0.9]),
    (torch.special.entr, POSITIVE),
    (torch.special.expit, ANYWHERE),
    (torch.special.i0e, ANYWHERE),
    (torch.special.i1, ANYWHERE),
    (torch.special.i1e, ANYWHERE),
    (torch.special.log_ndtr, ANYWHERE),
    (torch.special.ndtr, ANYWHERE),
    (torch.special.ndtri, [0.1, 0.25, 0.5, 0.9]),
    (torch.special.psi, POSITIVE),
]
NO_HALF = {"i0e", "i1", "i1e", "log_ndtr", "ndtr", "ndtri", "entr", "special_i0e", "special_i1", "special_i1e"}


@pytest.mark.parametrize(("function", "values"), FLOAT_UNARY, ids=lambda v: getattr(v, "__name__", ""))
def test_float_unary(function, values):
    half = not (NO_HALF & {function.__name__, function.__name__.removeprefix("special_")})
    integers = (torch.int64, torch.bool) if values is ANYWHERE or values is POSITIVE else ()
    several(function, values, (torch.float32, *(FLOATS[1:] if half else ()), *integers))


ANY_UNARY = {
    "abs": (torch.abs, (*WITH_INTEGERS, torch.int8)),
    "angle": (torch.angle, (torch.float32, torch.int64)),
    "bitwise_not": (torch.bitwise_not, (torch.int64, torch.uint8, torch.bool)),
    "ceil": (torch.ceil, WITH_INTEGERS),
    "floor": (torch.floor, WITH_INTEGERS),
    "frac": (torch.frac, FLOATS),
    "isfinite": (torch.isfinite, ALL_DTYPES),
    "isinf": (torch.isinf, ALL_DTYPES),
    "isnan": (torch.isnan, ALL_DTYPES),
    "logical_not": (torch.logical_not, ALL_DTYPES),
    "neg": (torch.neg, WITH_INTEGERS),
    "round": (torch.round, WITH_INTEGERS),
    "round_1": (lambda x: torch.round(x, decimals=1), (torch.float32,)),
    "round_-1": (lambda x: torch.round(x * 10, decimals=-1), (torch.float32,)),
    "sgn": (torch.sgn, ALL_DTYPES),
    "sign": (torch.sign, ALL_DTYPES),
    "signbit": (torch.signbit, ALL_DTYPES),
    "square": (torch.square, ALL_DTYPES),
    "trunc": (torch.trunc, WITH_INTEGERS),
    "positive": (torch.positive, WITH_INTEGERS),
    "relu": (torch.relu, WITH_INTEGERS),
    "nan_to_num": (torch.nan_to_num, WITH_INTEGERS),
    "clamp": (lambda x: x.clamp(-1, 1), WITH_INTEGERS),
    "clamp_min": (lambda x: x.clamp_min(0.5), (*FLOATS, torch.int64)),
    "clamp_max": (lambda x: x.clamp(max=1), WITH_INTEGERS),
    "pow_0": (lambda x: x**0, WITH_INTEGERS),
    "pow_2": (lambda x: x**2, ALL_DTYPES),
    "pow_3": (lambda x: x**3, WITH_INTEGERS),
    "pow_float": (lambda x: x.abs() ** 2.5, WITH_INTEGERS),
    "pow_big": (lambda x: (x / 4) ** 11, FLOATS),
    "rpow": (lambda x: 2**x, FLOATS),
    "rpow_float": (lambda x: 2.5**x, WITH_INTEGERS),
    "rsub": (lambda x: 1.5 - x, WITH_INTEGERS),
    "rdiv": (lambda x: 1.5 / (x.abs() + 1), WITH_INTEGERS),
    "add_int": (lambda x: x + 2, ALL_DTYPES),
    "add_float": (lambda x: x + 2.5, ALL_DTYPES),
    "mul_true": (lambda x: x * True, ALL_DTYPES),
    "div_int": (lambda x: x / 2, ALL_DTYPES),
    "floordiv": (lambda x: x // 2, WITH_INTEGERS),
    "floordiv_negative": (lambda x: x // -2.5, WITH_INTEGERS),
    "mod": (lambda x: x % 2, WITH_INTEGERS),
    "mod_negative": (lambda x: x % -1.5, FLOATS),
    "fmod": (lambda x: torch.fmod(x, 2), WITH_INTEGERS),
    "logit_eps": (lambda x: torch.logit(x, 0.25), FLOATS),
    "mvlgamma": (lambda x: torch.mvlgamma(x.abs() + 3, 2), (torch.float32,)),
    "polygamma": (lambda x: torch.polygamma(1, x.abs() + 1), (torch.float32,)),
    "shift": (lambda x: (x << 2) >> 1, (torch.int64, torch.int8)),
    "compare": (lambda x: torch.stack([x == 1, x != 1, x < 0.5, x <= 1, x > 0, x >= 2.5]), ALL_DTYPES),
    "bitwise": (lambda x: ((x & 6) | 1) ^ 3, (torch.int64, torch.int8)),
    "logical": (lambda x: torch.logical_and(x, x > 0) ^ torch.logical_or(x, x < 0), ALL_DTYPES),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 7), WITH_INTEGERS),
    "to_half": (lambda x: x.half(), ALL_DTYPES),
    "to_int8": (lambda x: x.to(torch.int8), ALL_DTYPES),
    "to_uint8": (lambda x: x.to(torch.uint8), ALL_DTYPES),
    "to_bool": (lambda x: x.bool(), ALL_DTYPES),
    "to_int": (lambda x: x.long(), ALL_DTYPES),
    "detach": (lambda x: x.detach() * x, WITH_INTEGERS),
    "alias": (lambda x: x.clone().contiguous() + 0, WITH_INTEGERS),
}


@pytest.mark.parametrize("name", ANY_UNARY)
def test_any_unary(name):
    function, dtypes = ANY_UNARY[name]
    several(function, ANYWHERE, dtypes, gradients=name not in NO_DERIVATIVE)


NO_DERIVATIVE = {"floordiv", "floordiv_negative", "floor_divide", "heaviside", "sgn", "floordiv_zero"}  # in torch
SPECIAL_VALUES = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "clamp": lambda x: x.clamp(-1, 1),
    "isneginf": torch.isneginf,
    "isposinf": torch.isposinf,
    "isreal": torch.isreal,
    "nan_to_num": torch.nan_to_num,
    "nan_to_num_given": lambda x: torch.nan_to_num(x, 1.0, 2.0, 3.0),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "sqrt": torch.sqrt,
    "where_is_safe": lambda x: torch.where(x.isfinite(), x, 0.0).sum(),
    "sgn": torch.sgn,
    "angle": torch.angle,
    "tanh": torch.tanh,
    "floordiv_zero": lambda x: x // 0.0,
    "mod_2": lambda x: x % 2,
    "pow_half": lambda x: x**0.5,
    "pow_-2": lambda x: x**-2,
    "square": torch.square,
}


@pytest.mark.parametrize("name", SPECIAL_VALUES)
def test_special_values(name):
    # Gradients where the input is NaN itself are nobody's business.
    values = [-INF, -2.0, -1.0, -0.0, 0.0, 1.0, 3.0, INF]
    check(SPECIAL_VALUES[name], torch.tensor([*values, NAN]), gradients=False)
    check(SPECIAL_VALUES[name], torch.tensor(values), gradients=name not in NO_DERIVATIVE)


LEFT = [-2.0, -1.5, 0.0, 0.5, 1.0, 2.0, 2.0, 3.0]
RIGHT = [1.0, -1.5, 2.0, 0.5, -2.5, 2.0, 0.25, 4.0]
BINARY = {
    "add": (torch.add, ALL_DTYPES),
    "add_alpha": (lambda x, y: torch.add(x, y, alpha=3), WITH_INTEGERS),
    "atan2": (torch.atan2, WITH_INTEGERS),
    "copysign": (torch.copysign, WITH_INTEGERS),
    "nextafter": (torch.nextafter, (torch.float32,)),
    "div": (lambda x, y: x / (y.abs() + 1), ALL_DTYPES[:5]),
    "div_floor": (lambda x, y: torch.div(x, y.abs() + 1, rounding_mode="floor"), WITH_INTEGERS),
    "div_trunc": (lambda x, y: torch.div(x, y.abs() + 1, rounding_mode="trunc"), WITH_INTEGERS),
    "floor_divide": (lambda x, y: torch.floor_divide(x, y.abs() + 1), WITH_INTEGERS),
    "fmax": (torch.fmax, WITH_INTEGERS),
    "fmin": (torch.fmin, WITH_INTEGERS),
    "fmod": (lambda x, y: torch.fmod(x, y.abs() + 1), WITH_INTEGERS),
    "heaviside": (torch.heaviside, (torch.float32, torch.int64)),
    "hypot": (torch.hypot, FLOATS),
    "ldexp": (torch.ldexp, (torch.float32,)),
    "logaddexp": (torch.logaddexp, (torch.float32,)),
    "logaddexp2": (torch.logaddexp2, (torch.float32,)),
    "maximum": (torch.maximum, ALL_DTYPES),
    "minimum": (torch.minimum, ALL_DTYPES),
    "mul": (torch.mul, ALL_DTYPES),
    "pow": (lambda x, y: (x.abs() + 1) ** y.abs(), WITH_INTEGERS),
    "remainder": (lambda x, y: torch.remainder(x, y.abs() + 1), WITH_INTEGERS),
    "remainder_negative": (lambda x, y: torch.remainder(x, -y.abs() - 1), WITH_INTEGERS),
    "rsub": (torch.rsub, WITH_INTEGERS),
    "sub": (torch.sub, WITH_INTEGERS),
    "sub_alpha": (lambda x, y: torch.sub(x, y, alpha=2), WITH_INTEGERS),
    "where": (lambda x, y: torch.where(x > y, x, y), ALL_DTYPES),
    "where_scalars": (lambda x, y: torch.where(x > y, 1.0, 0) + torch.where(x > y, x, 2), WITH_INTEGERS),
    "xlogy": (lambda x, y: torch.xlogy(x, y.abs() + 1), WITH_INTEGERS),
    "xlog1py": (lambda x, y: torch.special.xlog1py(x, y.abs()), (torch.float32,)),
    "compare": (lambda x, y: torch.stack([x == y, x != y, x < y, x <= y, x > y, x >= y]), ALL_DTYPES),
    "bitwise": (lambda x, y: (x & y) | (x ^ y), (torch.int64, torch.int8, torch.bool)),
    "logical_xor": (torch.logical_xor, ALL_DTYPES),
    "clamp": (lambda x, y: x.clamp(y - 1, y + 1), WITH_INTEGERS),
    "clamp_min": (lambda x, y: x.clamp_min(y), WITH_INTEGERS),
    "clamp_crossed": (lambda x, y: x.clamp(y + 1, y - 1), (torch.float32,)),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.75), FLOATS),
    "lerp_tensor": (lambda x, y: torch.lerp(x, y, x.sigmoid()), (torch.float32,)),
    "addcmul": (lambda x, y: torch.addcmul(x, x, y, value=0.5), FLOATS),
    "addcdiv": (lambda x, y: torch.addcdiv(x, x, y.abs() + 1, value=0.5), FLOATS),
    "isclose": (torch.isclose, (torch.float32, torch.int64)),
    "isin": (lambda x, y: torch.isin(x, y[:3]), (torch.float32, torch.int64)),
    "copy": (lambda x, y: (x + y).copy_(y), ALL_DTYPES),
    "masked_fill_tensor": (lambda x, y: x.masked_fill(x > y, y.sum().to(x.dtype)), WITH_INTEGERS),
    "gcd": (torch.gcd, (torch.int64,)),
    "lcm": (torch.lcm, (torch.int64,)),
    "shifts": (lambda x, y: (x << y.abs()) >> 1, (torch.int64,)),
    "float_power": (lambda x, y: torch.float_power(x.abs() + 1, y).float(), (torch.float32, torch.int64)),
    "gammainc": (lambda x, y: torch.special.gammainc(x.detach().abs() + 1, y.abs()), (torch.float32,)),
    "complex": (lambda x, y: torch.view_as_real(torch.complex(x, y) * torch.polar(y.abs(), x)), (torch.float32,)),
    "complex_parts": (
        lambda x, y: (lambda z: z.real * z.imag + z.conj().imag + z.abs())(torch.complex(x, y)),
        (torch.float32,),
    ),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary(name):
    function, dtypes = BINARY[name]
    inputs = [torch.tensor(values).to(dtype) for dtype in dtypes for values in (LEFT, RIGHT)]
    inputs += [torch.tensor(LEFT).to(dtypes[0]).view(2, 1, 4), torch.tensor(RIGHT[2:5]).to(dtypes[0]).view(3, 1)]
    check(
        lambda *xs: tuple(function(x, y) for x, y in zip(xs[::2], xs[1::2], strict=True)),
        *inputs,
        gradients=name not in NO_DERIVATIVE,
    )


BINARY_SPECIAL = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "logaddexp": torch.logaddexp,
    "clamp": lambda x, y: x.clamp(min=y),
    "hypot": torch.hypot,
    "isclose": lambda x, y: torch.isclose(x, y, equal_nan=True),
    "div": torch.div,
    "atan2": torch.atan2,
}


@pytest.mark.parametrize("name", BINARY_SPECIAL)
def test_binary_special_values(name):
    for values in ([-INF, -1.0, 0.0, 1.0, INF, NAN], [-INF, -1.0, 0.0, 1.0, INF]):
        left, right = torch.meshgrid(torch.tensor(values), torch.tensor(values), indexing="ij")
        check(BINARY_SPECIAL[name], left.contiguous(), right.contiguous(), gradients=NAN not in values)


def test_large_values_neither_overflow_nor_lose_their_gradient():
    x = torch.tensor([1e30, -1e30, 1e-30, 3e4])
    check(lambda x: (torch.hypot(x, x), torch.nn.functional.elu(x), torch.nn.functional.softplus(x)), x)
