"""Gamma, zeta and error functions beyond those of `unary` (aten/src/ATen/native/Math.h)."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.scipy import special

from esper.errors import RefusedError
from esper.jax_backend.promotion import in_float32, promote_to_float, to_float
from esper.jax_backend.registry import lowers

# Bernoulli's numbers B(2), B(4), ... over (2j)!, for Euler and Maclaurin's formula.
_BERNOULLI = [
    number / math.factorial(2 * j)
    for j, number in enumerate(
        (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330), start=1
    )
]


@lowers("aten.special_erfcx.default")
def erfcx_(x):
    """special_erfcx(Tensor self) -> Tensor"""
    return in_float32(erfcx)(to_float(x))


@jax.custom_jvp
def erfcx(x):
    """exp(x^2) * erfc(x)."""
    size = jnp.abs(x)
    # The midpoint rule for x / pi * integral of exp(-t^2) / (t^2 + x^2); the last term is what its poles add.
    step, nodes = 0.5, [0.5 * (n + 0.5) for n in range(13)]
    safe = jnp.where(x == 0, 1, size)
    total = sum(math.exp(-t * t) / (safe + t * t / safe) for t in nodes)
    near = jnp.minimum(size, math.pi / step)
    poles = 2 * jnp.exp(near * near) / (1 + jnp.exp(2 * math.pi / step * near))
    positive = jnp.where(x == 0, 1, 2 * step / math.pi * total + jnp.where(size < math.pi / step, poles, 0))
    return jnp.where(x < 0, 2 * jnp.exp(x * x) - positive, positive)


@erfcx.defjvp
def _erfcx_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    value = erfcx(x)
    return value, t * (2 * x * value - 2 / math.sqrt(math.pi))


@lowers("aten.polygamma.default", "aten.special_polygamma.default")
def polygamma_(n, x):
    """polygamma(int n, Tensor self) -> Tensor"""
    return in_float32(partial(polygamma, n))(to_float(x))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def polygamma(n: int, x: jax.Array) -> jax.Array:
    """The n-th derivative of `digamma`."""
    if n == 0:
        # At zero torch has the limit, with the sign that zero has.
        return jnp.where(x == 0, jnp.copysign(jnp.inf, -x), special.digamma(jnp.where(x == 0, 1, x)))
    if n == 1:
        return _trigamma(x)
    factor = math.exp(math.lgamma(n + 1)) if n < 170 else math.inf
    return (-1) ** (n + 1) * factor * zeta(jnp.asarray(n + 1, x.dtype), x)


@polygamma.defjvp
def _polygamma_jvp(n, primals, tangents):
    (x,), (t,) = primals, tangents
    return polygamma(n, x), t * polygamma(n + 1, x)


def digamma(x):
    """The derivative of `lgamma`."""
    return polygamma(0, x)


@jax.custom_jvp
def lgamma(x):
    """The logarithm of the gamma function's magnitude."""
    return special.gammaln(x)


@lgamma.defjvp
def _lgamma_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return lgamma(x), t * digamma(x)


def _trigamma(x):
    """By reflection below a half, and by recurrence up to where torch, in float64 too, ends the asymptotic series."""
    below = x < 0.5
    a = jnp.where(below, 1 - x, x)
    total = jnp.zeros_like(a)
    for _ in range(6):
        total, a = total + 1 / (a * a), a + 1
    square = 1 / (a * a)
    total = total + (1 + 1 / (2 * a) + square * (1 / 6 - square * (1 / 30 - square / 42))) / a
    mirror = jnp.square(math.pi / jnp.sin(math.pi * x))
    return jnp.where(below, mirror - total, total)


@lowers("aten.special_zeta.default", "aten.special_zeta.self_scalar", "aten.special_zeta.other_scalar")
def zeta_(x, other):
    """special_zeta(Tensor self, Tensor other) -> Tensor"""
    return in_float32(zeta)(*jnp.broadcast_arrays(*promote_to_float(x, other)))


@jax.custom_jvp
def zeta(s, q):
    """Hurwitz's zeta function: the sum of (q + k)^-s over k = 0, 1, ..."""
    s, q = jnp.broadcast_arrays(s, q)
    # A base below zero has a power only where the exponent is whole.
    pole = (s == 1) | ((s > 1) & (q <= 0) & (q == jnp.floor(q)))
    usable = (s > 1) & ((q > 0) | (s == jnp.floor(s))) & ~pole
    head, a = _zeta_head(jnp.where(usable, s, 2), jnp.where(usable, q, 1))
    tail = _zeta_tail(jnp.where(usable, s, 2), a)
    return jnp.where(pole, jnp.inf, jnp.where(usable, head + tail, jnp.nan))


@partial(zeta.defjvp, symbolic_zeros=True)
def _zeta_jvp(primals, tangents):
    (s, q), (by_s, by_q) = primals, tangents
    if not isinstance(by_s, SymbolicZero):
        raise RefusedError("zeta has no derivative by its first argument, in torch neither: detach it")
    value, slope = zeta(s, q), -s * zeta(s + 1, q)
    return value, jnp.zeros_like(value) if isinstance(by_q, SymbolicZero) else slope * by_q


def _zeta_head(s, q):
    """The terms up to where Euler and Maclaurin's formula is exact, and the first base that is left."""
    enough = jnp.clip(s / 2, 0, 90) + 10

    def more(state):
        return jnp.any(state[1] < enough)

    def add(state):
        total, a = state
        going = a < enough
        return jnp.where(going, total + a**-s, total), jnp.where(going, a + 1, a)

    return jax.lax.while_loop(more, add, (jnp.zeros_like(q), q))


def _zeta_tail(s, a):
    total = a ** (1 - s) / (s - 1) + a**-s / 2
    factor = s * a ** (-s - 1)
    for j, coefficient in enumerate(_BERNOULLI, start=1):
        total = total + coefficient * factor
        factor = factor * (s + 2 * j - 1) * (s + 2 * j) / (a * a)
    return total
