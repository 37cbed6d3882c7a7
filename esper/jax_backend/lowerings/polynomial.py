"""Orthogonal polynomials of a degree that is a tensor too (aten/src/ATen/native/Math.h).

Each is the recurrence p(k+1) = (a x + b) p(k) - c p(k-1), run as far as the largest degree asks for; torch has no
derivative for any of them. Within [-1, 1] Chebyshev's have closed forms, which torch uses for high degrees.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.jax_backend.promotion import promote_to_float
from esper.jax_backend.registry import lowers


def _polynomial(name):
    """Registers a function of x and the whole degree n, for every mix of tensors and numbers."""

    def register(function):
        @lowers(*(f"aten.special_{name}.{overload}" for overload in ("default", "x_scalar", "n_scalar")))
        def rule(x, n):
            x, n = jnp.broadcast_arrays(*jax.lax.stop_gradient(promote_to_float(x, n)))
            n = jnp.trunc(jnp.where(jnp.isfinite(n), n, -1))
            return jnp.where(n < 0, 0, function(x, n))

        return function

    return register


def _recur(x, n, first, following, done=False):
    """p(n) where p(0) = 1, p(1) = `first` and p(k+1) = following(k, p(k), p(k-1)); entries that are `done` wait."""
    done = done | jnp.isnan(x)

    def more(state):
        k, _, current = state
        return jnp.any((k < n) & ~done & ~jnp.isnan(current))

    def step(state):
        k, before, current = state
        going = (k < n) & ~done & ~jnp.isnan(current)
        return k + 1, jnp.where(going, current, before), jnp.where(going, following(k, current, before), current)

    _, _, last = jax.lax.while_loop(more, step, (jnp.ones((), x.dtype), jnp.ones_like(x), first))
    return jnp.where(n == 0, 1, last)


def _sign(n):
    """(-1)^n."""
    return jnp.where(n % 2 == 0, 1, -1)


def _chebyshev(x, n, first, high, at_one, at_minus_one, inside):
    """A Chebyshev polynomial by its p(1), its values at the ends and its closed form inside, from degree `high` on."""
    closed = (n > high) & (jnp.abs(x) < 1)
    out = _recur(x, n, first, lambda k, p, before: 2 * x * p - before, closed | (jnp.abs(x) == 1))
    out = jnp.where(closed, inside(jnp.arccos(jnp.clip(x, -1, 1))), out)
    return jnp.where(x == 1, at_one, jnp.where(x == -1, at_minus_one, out))


def _t(x, n):
    return _chebyshev(x, n, x, 6, jnp.ones_like(x), _sign(n), lambda angle: jnp.cos(n * angle))


def _u(x, n, high=8):
    def inside(angle):
        return jnp.sin((n + 1) * angle) / jnp.sin(angle)

    return _chebyshev(x, n, 2 * x, high, n + 1, _sign(n) * (n + 1), inside)


def _v(x, n, high=8):
    def inside(angle):
        return jnp.cos((n + 0.5) * angle) / jnp.cos(angle / 2)

    return _chebyshev(x, n, 2 * x - 1, high, jnp.ones_like(x), _sign(n) * (2 * n + 1), inside)


def _w(x, n, high=8):
    def inside(angle):
        return jnp.sin((n + 0.5) * angle) / jnp.sin(angle / 2)

    return _chebyshev(x, n, 2 * x + 1, high, 2 * n + 1, _sign(n), inside)


_polynomial("chebyshev_polynomial_t")(_t)
_polynomial("chebyshev_polynomial_u")(_u)
_polynomial("chebyshev_polynomial_v")(_v)
_polynomial("chebyshev_polynomial_w")(_w)
_polynomial("shifted_chebyshev_polynomial_t")(lambda x, n: _t(2 * x - 1, n))
_polynomial("shifted_chebyshev_polynomial_u")(lambda x, n: _u(2 * x - 1, n, 6))
_polynomial("shifted_chebyshev_polynomial_v")(lambda x, n: _v(2 * x - 1, n, 6))
_polynomial("shifted_chebyshev_polynomial_w")(lambda x, n: _w(2 * x - 1, n, 4))


@_polynomial("hermite_polynomial_h")
def hermite_h(x, n):
    """special_hermite_polynomial_h(Tensor x, Tensor n) -> Tensor"""
    return _hermite(x, n, 2 * x, lambda k, p, before: 2 * x * p - 2 * k * before)


@_polynomial("hermite_polynomial_he")
def hermite_he(x, n):
    """special_hermite_polynomial_he(Tensor x, Tensor n) -> Tensor"""
    return _hermite(x, n, x, lambda k, p, before: x * p - k * before)


def _hermite(x, n, first, following):
    # Torch gives up where every value overflows.
    limit = 512 if x.dtype == jnp.float64 else 128
    return jnp.where(n > limit, jnp.nan, _recur(x, n, first, following, n > limit))


@_polynomial("laguerre_polynomial_l")
def laguerre(x, n):
    """special_laguerre_polynomial_l(Tensor x, Tensor n) -> Tensor"""
    out = _recur(x, n, 1 - x, lambda k, p, before: ((2 * k + (1 - x)) * p - k * before) / (k + 1), x == 0)
    return jnp.where(x == 0, 1, out)


@_polynomial("legendre_polynomial_p")
def legendre(x, n):
    """special_legendre_polynomial_p(Tensor x, Tensor n) -> Tensor"""
    size = jnp.abs(x)
    out = _recur(x, n, x, lambda k, p, before: ((2 * k + 1) * x * p - k * before) / (k + 1), size == 1)
    return jnp.where(x == 1, 1, jnp.where(x == -1, _sign(n), out))
