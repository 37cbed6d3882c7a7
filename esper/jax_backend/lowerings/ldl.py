"""Factorisations of symmetric indefinite matrices: LAPACK's sytrf, hetrf and sytrs, which XLA has not.

Bunch and Kaufman's diagonal pivoting, "Some stable methods for calculating inertia and solving symmetric linear
systems" (1977), on the lower triangle, with LAPACK's choice and storage of pivots. Torch has no gradient here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from esper.jax_backend.lowerings.factorizations import hermitian as mirrored
from esper.jax_backend.promotion import is_complex
from esper.jax_backend.registry import lowers

_ALPHA = (1 + 17**0.5) / 8  # the least growth of the two kinds of step


@lowers("aten.linalg_ldl_factor.default")
def linalg_ldl_factor(x, *, hermitian=False):
    """linalg_ldl_factor(Tensor self, *, bool hermitian=False) -> (Tensor LD, Tensor pivots)"""
    return linalg_ldl_factor_ex(x, hermitian=hermitian)[:2]


@lowers("aten.linalg_ldl_factor_ex.default")
def linalg_ldl_factor_ex(x, *, hermitian=False, check_errors=False):
    """linalg_ldl_factor_ex(Tensor self, *, bool hermitian=False, bool check_errors=False) -> (Tensor LD, Tensor pivots, Tensor info)"""  # noqa: E501
    *batch, size, _ = x.shape
    if x.size == 0:
        return x, jnp.zeros((*batch, size), jnp.int32), jnp.zeros(tuple(batch), jnp.int32)
    whole = mirrored(x, False) if hermitian else jnp.tril(x) + jnp.tril(x, -1).mT
    flat = whole.reshape(-1, size, size)
    packed, pivots, info = jax.vmap(lambda a: _factor(a, hermitian and is_complex(x)))(flat)
    return packed.reshape(x.shape), pivots.reshape(*batch, size), info.reshape(tuple(batch))


def _factor(a, conjugate):
    """(LD, pivots, info) of one matrix, given by both its triangles."""
    size = a.shape[0]
    state = (jnp.int32(0), a, jnp.zeros_like(a), jnp.zeros(size, jnp.int32), jnp.int32(0))
    return lax.while_loop(lambda state: state[0] < size, lambda state: _eliminate(state, conjugate), state)[2:]


def _eliminate(state, conjugate):
    """One step, by one row or two; of `a` only what lies below and right of the k-th diagonal element counts."""
    k, a, packed, pivots, info = state
    place = jnp.arange(a.shape[0])
    double, target, zero = _pivot(a, k)
    a = _exchanged(_exchanged(a, k + double, target).T, k + double, target).T
    second = jnp.minimum(k + 1, a.shape[0] - 1)
    first, next_ = (jnp.where(place > k + double, a[:, i], 0) for i in (k, second))
    corner, below, right, other = a[k, k], a[second, k], a[k, second], a[second, second]
    one, two = _divided(first, next_, corner, below, right, other)
    one = jnp.where(zero, 0, jnp.where(double, one, first / corner))
    two = jnp.where(double, two, 0)
    against = (first.conj(), next_.conj()) if conjugate else (first, next_)
    a = a - one[:, None] * against[0] - two[:, None] * against[1]
    if conjugate:
        a = jnp.where(place[:, None] == place, a.real, a)
    one = one + jnp.where(place == k, corner, 0) + jnp.where(double & (place == second), below, 0)
    two = jnp.where(double, two + jnp.where(place == second, other, 0), packed[:, second])
    packed = packed.at[:, second].set(two).at[:, k].set(one)
    sign = jnp.where(double, -1, 1)
    pivots = pivots.at[second].set(sign * (target + 1)).at[k].set(sign * (target + 1))
    return k + 1 + double, a, packed, pivots, jnp.where((info == 0) & zero, k + 1, info)


def _pivot(a, k):
    """Whether the k-th step takes two rows, which row comes to their last place, and whether there is no pivot."""
    place = jnp.arange(a.shape[0])
    size = jnp.abs(a.real) + jnp.abs(a.imag)
    column = jnp.where(place > k, size[:, k], 0)
    largest = jnp.argmax(column).astype(jnp.int32)
    growth = jnp.max(column)
    row = jnp.max(jnp.where((place >= k) & (place != largest), size[largest], 0))
    zero = (jnp.maximum(size[k, k], growth) == 0) | jnp.isnan(size[k, k])
    stay = (size[k, k] >= _ALPHA * growth) | (size[k, k] >= _ALPHA * growth * (growth / row)) | zero
    return ~stay & (size[largest, largest] < _ALPHA * row), jnp.where(stay, k, largest), zero


def _exchanged(a, i, j):
    """`a` with its rows i and j exchanged."""
    return a.at[i].set(a[j]).at[j].set(a[i])


def _divided(first, second, corner, below, right, other):
    """Two columns times the inverse of [[corner, right], [below, other]], scaled by what is large there."""
    left, low = corner / right, other / below
    scale = left * low - 1
    return (first * low - second) / (right * scale), (second * left - first) / (below * scale)


@lowers("aten.linalg_ldl_solve.default")
def linalg_ldl_solve(LD, pivots, B, *, hermitian=False):
    """linalg_ldl_solve(Tensor LD, Tensor pivots, Tensor B, *, bool hermitian=False) -> Tensor"""
    batch = jnp.broadcast_shapes(LD.shape[:-2], B.shape[:-2])
    if 0 in batch or 0 in B.shape[-2:]:
        return jnp.zeros((*batch, *B.shape[-2:]), B.dtype)
    shapes = (LD.shape[-2:], pivots.shape[-1:], B.shape[-2:])
    flat = [
        jnp.broadcast_to(x, (*batch, *shape)).reshape(-1, *shape)
        for x, shape in zip((LD, pivots, B), shapes, strict=True)
    ]
    solve = jax.vmap(lambda *one: _solve(*one, hermitian and is_complex(LD)))
    return solve(*flat).reshape(*batch, *B.shape[-2:])


def _solve(packed, pivots, b, conjugate):
    """One system."""
    # The first of a pair of negative pivots starts a block of two rows.
    _, starts = lax.scan(lambda inside, pivot: ((pivot < 0) & ~inside,) * 2, jnp.asarray(False), pivots)
    ends = (pivots < 0) & ~starts
    place = jnp.arange(packed.shape[0])
    unit = jnp.where(place[:, None] > place + starts, packed, 0)
    unit, rows = _ordered(unit, jnp.abs(pivots) - 1, starts, ends)
    x = solve_triangular(unit, b[rows], lower=True, unit_diagonal=True)
    x = _blocks_solved(packed, starts, ends, x, conjugate)
    x = solve_triangular(unit, x, trans="C" if conjugate else "T", lower=True, unit_diagonal=True)
    return jnp.zeros_like(x).at[rows].set(x)


def _ordered(unit, target, starts, ends):
    """The triangular factor with every exchange of rows done, and the rows of A in its order.

    LAPACK leaves the columns that come before an exchange as they were.
    """
    place = jnp.arange(unit.shape[0])

    def exchange(k, state):
        unit, rows = state
        goal = jnp.where(starts[k], k, target[k])
        earlier = place < k - ends[k]
        return jnp.where(earlier, _exchanged(unit, k, goal), unit), _exchanged(rows, k, goal)

    return lax.fori_loop(0, unit.shape[0], exchange, (unit, place))


def _blocks_solved(packed, starts, ends, b, conjugate):
    diagonal = jnp.diagonal(packed)
    below = jnp.where(starts, jnp.append(jnp.diagonal(packed, -1), 0), 1)[:, None]
    right = below.conj() if conjugate else below
    following = jnp.roll(diagonal, -1)[:, None]
    diagonal, starts, ends = diagonal[:, None], starts[:, None], ends[:, None]
    # Rows instead of columns: the block is transposed.
    one, two = _divided(b, jnp.roll(b, -1, 0), diagonal, right, below, following)
    return jnp.where(starts, one, jnp.where(ends, jnp.roll(two, 1, 0), b / diagonal))
