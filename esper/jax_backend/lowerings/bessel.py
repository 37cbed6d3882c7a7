"""Bessel and Airy functions (aten/src/ATen/native/Math.h); torch has no derivative for any of them.

Near zero they are power series. Elsewhere they are an oscillation or a decay times an integral over exp(-u^2)
and something smooth (Hankel's integrals, NIST DLMF 10.9 and 9.5), where the trapezoidal rule converges exponentially.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy import special

from esper.jax_backend.promotion import to_float
from esper.jax_backend.registry import lowers

_TERMS = 20
_J_NEAR, _K_NEAR, _AIRY_NEAR = 3.0, 2.0, 2.0
_AIRY_ZERO, _AIRY_SLOPE = 3 ** (-2 / 3) / math.gamma(2 / 3), 3 ** (-1 / 3) / math.gamma(1 / 3)


@lowers("aten.special_airy_ai.default")
def airy_ai(x):
    """special_airy_ai(Tensor x) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    size = jnp.maximum(jnp.abs(x), _AIRY_NEAR)
    root = jnp.sqrt(size)
    phase = 2 / 3 * size * root
    decay = jnp.exp(-phase) * _airy_integral(size, 0)[0]
    real, imaginary = _airy_integral(size, math.pi / 6)
    # Ai(-x) = 2 Re(exp(i pi/3) Ai(x exp(i pi/3)))
    c, s = _turned(phase, math.pi / 3)
    wave = 2 * (real * c + imaginary * s)
    far = jnp.where(x > 0, decay, wave) / jnp.sqrt(root)
    return jnp.where(jnp.abs(x) < _AIRY_NEAR, _airy_series(x), jnp.where(jnp.isinf(x), jnp.nan, far))


@lowers("aten.special_bessel_j0.default")
def bessel_j0(x):
    """special_bessel_j0(Tensor self) -> Tensor"""
    x = jnp.abs(to_float(jax.lax.stop_gradient(x)))
    return jnp.where(x < _J_NEAR, _series(x, 0, -1), _wave(x, 0)[0])


@lowers("aten.special_bessel_j1.default")
def bessel_j1(x):
    """special_bessel_j1(Tensor self) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    return jnp.where(jnp.abs(x) < _J_NEAR, _series(x, 1, -1), jnp.copysign(1, x) * _wave(jnp.abs(x), 1)[0])


@lowers("aten.special_bessel_y0.default")
def bessel_y0(x):
    """special_bessel_y0(Tensor self) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    near = 2 / math.pi * (jnp.log(x / 2) * _series(x, 0, -1) - _digamma_series(x, 0, -1))
    return jnp.where(x < _J_NEAR, near, _wave(x, 0)[1])


@lowers("aten.special_bessel_y1.default")
def bessel_y1(x):
    """special_bessel_y1(Tensor self) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    near = 2 / math.pi * (jnp.log(x / 2) * _series(x, 1, -1) - _digamma_series(x, 1, -1) - 1 / x)
    return jnp.where(x == 0, -jnp.inf, jnp.where(x < _J_NEAR, near, _wave(x, 1)[1]))


@lowers("aten.special_modified_bessel_i0.default")
def modified_bessel_i0(x):
    """special_modified_bessel_i0(Tensor self) -> Tensor"""
    return special.i0(to_float(jax.lax.stop_gradient(x)))


@lowers("aten.special_modified_bessel_i1.default")
def modified_bessel_i1(x):
    """special_modified_bessel_i1(Tensor self) -> Tensor"""
    return special.i1(to_float(jax.lax.stop_gradient(x)))


@lowers("aten.special_modified_bessel_k0.default")
def modified_bessel_k0(x):
    """special_modified_bessel_k0(Tensor self) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    return jnp.where(x < _K_NEAR, _k0_near(x), jnp.exp(-x) * _decay(x, 0))


@lowers("aten.special_modified_bessel_k1.default")
def modified_bessel_k1(x):
    """special_modified_bessel_k1(Tensor self) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    return jnp.where(x < _K_NEAR, _k1_near(x), jnp.exp(-x) * _decay(x, 1))


@lowers("aten.special_scaled_modified_bessel_k0.default")
def scaled_modified_bessel_k0(x):
    """special_scaled_modified_bessel_k0(Tensor x) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    return jnp.where(x < _K_NEAR, jnp.exp(x) * _k0_near(x), _decay(x, 0))


@lowers("aten.special_scaled_modified_bessel_k1.default")
def scaled_modified_bessel_k1(x):
    """special_scaled_modified_bessel_k1(Tensor x) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    return jnp.where(x < _K_NEAR, jnp.exp(x) * _k1_near(x), _decay(x, 1))


@lowers("aten.special_spherical_bessel_j0.default")
def spherical_bessel_j0(x):
    """special_spherical_bessel_j0(Tensor x) -> Tensor"""
    x = to_float(jax.lax.stop_gradient(x))
    return jnp.where(jnp.isinf(x), 0, jnp.where(x == 0, 1, jnp.sin(x) / jnp.where(x == 0, 1, x)))


def _airy_integral(x, turn):
    """1/pi * integral of exp(-u^2 e^(i turn)) cos(u^3 / 3x^(3/4)) over u > 0: Ai(x e^(2i turn)) without its decay."""
    step = 0.19
    cube = 1 / (3 * x**0.75)
    real = imaginary = 0
    for n in range(36):
        u = step * n
        bell = step / math.pi * math.exp(-u * u * math.cos(turn)) * (0.5 if n == 0 else 1)
        wave = jnp.cos(u**3 * cube)
        real = real + bell * math.cos(u * u * math.sin(turn)) * wave
        imaginary = imaginary - bell * math.sin(u * u * math.sin(turn)) * wave
    return real, imaginary


def _airy_series(x):
    cube = x * x * x
    even, odd = [1.0], [1.0]
    for k in range(1, _TERMS):
        even.append(even[-1] / ((3 * k - 1) * (3 * k)))
        odd.append(odd[-1] / ((3 * k) * (3 * k + 1)))
    return _AIRY_ZERO * _polynomial(even, cube) - _AIRY_SLOPE * x * _polynomial(odd, cube)


def _decay(x, order):
    """exp(x) K(order, x): sqrt(pi / 2x) times a mean of (1 + u^2 / 2x)^(order - 1/2)."""
    x = jnp.maximum(x, _K_NEAR)
    total = sum(weight * (1 + u * u / (2 * x)) ** (order - 0.5) for u, weight in _bell(0.3, order))
    return jnp.sqrt(math.pi / 2 / x) * total


def _k0_near(x):
    return _digamma_series(x, 0, 1) - jnp.log(x / 2) * _series(x, 0, 1)


def _k1_near(x):
    return jnp.where(x == 0, jnp.inf, 1 / x + jnp.log(x / 2) * _series(x, 1, 1) - _digamma_series(x, 1, 1))


def _bell(step, order):
    """Nodes and weights for the mean over a bell curve: of 2 u^2 exp(-u^2) for order 1, of exp(-u^2) for order 0."""
    nodes = [step * n for n in range(int(6.5 / step) + 1)]
    weights = [(0.5 if n == 0 else 1) * math.exp(-u * u) * (2 * u * u if order else 1) for n, u in enumerate(nodes)]
    return [(u, 2 * step / math.sqrt(math.pi) * weight) for u, weight in zip(nodes, weights, strict=True)]


def _digamma_series(x, order, sign):
    """`_series` with each term weighted by the mean of digamma(k + 1) and digamma(k + order + 1)."""
    weights, digamma = [], -_EULER
    for k in range(_TERMS):
        weights.append(digamma + order / (2 * (k + 1)))
        digamma += 1 / (k + 1)
    return _series(x, order, sign, weights)


_EULER = 0.57721566490153286


def _polynomial(coefficients, x):
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _series(x, order, sign, weights=None):
    """The sum of weights[k] (x/2)^order (sign x^2/4)^k / k!(k + order)!: J for sign -1, I for sign 1."""
    terms = [
        (1 if weights is None else weights[k]) * sign**k / (math.factorial(k) * math.factorial(k + order))
        for k in range(_TERMS)
    ]
    total = _polynomial(terms, x * x / 4)
    return x / 2 * total if order else total


def _turned(phase, angle):
    """cos and sin of phase - angle, the difference taken apart because the phase may be large."""
    c, s = jnp.cos(phase), jnp.sin(phase)
    return math.cos(angle) * c + math.sin(angle) * s, math.cos(angle) * s - math.sin(angle) * c


def _wave(x, order):
    """J and Y by the integral for J + iY, that of `_decay` with u^2 / 2x turned to -u^2 / 2ix."""
    x = jnp.maximum(x, _J_NEAR)
    real = imaginary = 0
    for u, weight in _bell(0.28, order):
        a = u * u / (2 * x)
        r = jnp.sqrt(1 + a * a)
        c, s = jnp.sqrt((r + 1) / 2), a / jnp.sqrt(2 * (r + 1))  # the root of 1 + ia
        real = real + weight * (c if order else c / r)
        imaginary = imaginary + weight * (s if order else -s / r)
    c, s = _turned(x, math.pi / 4)
    if order:  # another quarter of a turn back, twice
        c, s = s, -c
    size = jnp.sqrt(2 / math.pi / x)
    return size * (real * c - imaginary * s), size * (real * s + imaginary * c)
