"""Triangular and orthogonal factorisations and what applies them, by LAPACK on the CPU as in torch.

XLA cannot raise for a matrix without a factorisation, where torch does: the result is NaN or infinite, and
the `_ex` forms say so in `info` as in torch.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from esper.errors import RefusedError
from esper.jax_backend.platform.precision import PRECISION
from esper.jax_backend.registry import lowers


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def hermitian(x, upper):
    """The Hermitian matrices of which `x` holds one triangle; torch's gradient is Hermitian too, not triangular."""
    half = jnp.triu(x, 1) if upper else jnp.tril(x, -1)
    diagonal = jnp.eye(x.shape[-1], dtype=bool)
    return jnp.where(diagonal, x.real.astype(x.dtype), half + half.mT.conj())


@hermitian.defjvp
def _hermitian_jvp(upper, primals, tangents):
    (x,), (dx,) = primals, tangents
    return hermitian(x, upper), (dx + dx.mT.conj()) / 2


@lowers("aten.cholesky.default", "aten.linalg_cholesky.default")
def cholesky(x, upper=False):
    """cholesky(Tensor self, bool upper=False) -> Tensor"""
    return _cholesky(x, upper)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cholesky(x, upper):
    if upper:  # `jnp.linalg.cholesky` would still read the lower triangle
        return _cholesky(x.mT.conj(), False).mT.conj()
    return jnp.linalg.cholesky(x, symmetrize_input=False)


@_cholesky.defjvp
def _cholesky_jvp(upper, primals, tangents):
    factor, (dx,) = _cholesky(*primals, upper), tangents
    lower = factor.mT.conj() if upper else factor
    left = broadcast_solve_triangular(lower, dx, upper=False)
    both = broadcast_solve_triangular(lower, left.mT.conj(), upper=False).mT.conj()
    # Torch's gradient averages the triangles, but keeps what is imaginary on the diagonal.
    dlower = product(lower, (jnp.tril(both) + jnp.tril(both.mT.conj(), -1)) / 2)
    return factor, dlower.mT.conj() if upper else dlower


@lowers("aten.cholesky_inverse.default")
def cholesky_inverse(x, upper=False):
    """cholesky_inverse(Tensor self, bool upper=False) -> Tensor"""
    return cholesky_solve(jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape), x, upper)


@lowers("aten.cholesky_solve.default")
def cholesky_solve(x, input2, upper=False):
    """cholesky_solve(Tensor self, Tensor input2, bool upper=False) -> Tensor"""
    return _cholesky_solve(input2.mT.conj() if upper else input2, x)


@jax.custom_jvp
def _cholesky_solve(factor, b):
    half = broadcast_solve_triangular(factor, b, upper=False)
    return broadcast_solve_triangular(jnp.tril(factor).mT.conj(), half, upper=True)


@_cholesky_solve.defjvp
def _cholesky_solve_jvp(primals, tangents):
    # Torch differentiates `factor @ factor^H` as it stands, the triangle that the value does not read included.
    (factor, b), (dfactor, db) = primals, tangents
    x = _cholesky_solve(factor, b)
    half = product(dfactor, factor.mT.conj())
    return x, _cholesky_solve(factor, db - product(half + half.mT.conj(), x))


@lowers("aten.linalg_cholesky_ex.default")
def linalg_cholesky_ex(x, *, upper=False, check_errors=False):
    """linalg_cholesky_ex(Tensor self, *, bool upper=False, bool check_errors=False) -> (Tensor L, Tensor info)"""
    factor = cholesky(x, upper)
    failed = jnp.isnan(factor).any((-2, -1))
    return factor, jnp.where(failed, _indefinite_minor(lax.stop_gradient(hermitian(x, upper))), 0)


def _indefinite_minor(x):
    """The order of the first leading minor that is not positive; of a matrix that has none, its size.

    It costs a factorisation of its own, which XLA drops where nobody reads `info`.
    """
    size = x.shape[-1]
    order = jnp.full(x.shape[:-2], size, jnp.int32)

    def eliminate(k, state):
        rest, order = state
        row = jnp.take(rest, k, axis=-2)
        pivot = jnp.take(row, k, axis=-1).real
        order = jnp.where((order == size) & ~(pivot > 0), k + 1, order)
        return rest - row[..., :, None].conj() * row[..., None, :] / pivot[..., None, None], order

    return lax.fori_loop(0, size, eliminate, (x, order))[1] if size else order


@lowers("aten.geqrf.default")
def geqrf(x):
    """geqrf(Tensor self) -> (Tensor a, Tensor tau)"""
    transposed, tau = jnp.linalg.qr(x, mode="raw")
    return transposed.mT, tau


@lowers("aten.linalg_householder_product.default", "aten.orgqr.default")
def linalg_householder_product(input, tau):
    """linalg_householder_product(Tensor input, Tensor tau) -> Tensor"""
    return _householder_product(input, tau)


@jax.custom_jvp
def _householder_product(packed, tau):
    return lax.linalg.householder_product(packed, tau)


@_householder_product.defjvp
def _householder_product_jvp(primals, tangents):
    def reflected(packed, tau):
        start = jnp.broadcast_to(jnp.eye(*packed.shape[-2:], dtype=packed.dtype), packed.shape)
        return _reflect(packed, tau, start, reverse=True)

    return _householder_product(*primals), jax.jvp(reflected, primals, tangents)[1]


def _reflect(packed, tau, x, *, reverse):
    """Householder reflections applied from the left to `x`, the first of them first unless `reverse`."""
    count = tau.shape[-1]
    vectors = jnp.tril(packed, -1)[..., :count] + jnp.eye(packed.shape[-2], count, dtype=packed.dtype)

    def one(x, reflection):
        vector, factor = reflection
        onto = product(vector[..., None, :].conj(), x)
        return x - factor[..., None, None] * vector[..., :, None] * onto, None

    return lax.scan(one, x, (jnp.moveaxis(vectors, -1, 0), jnp.moveaxis(tau, -1, 0)), reverse=reverse)[0]


@lowers("aten.linalg_lu.default")
def linalg_lu(A, *, pivot=True):
    """linalg_lu(Tensor A, *, bool pivot=True) -> (Tensor P, Tensor L, Tensor U)"""
    return lu_unpack(*linalg_lu_factor(A, pivot=pivot))


@lowers("aten.linalg_lu_factor.default")
def linalg_lu_factor(A, *, pivot=True):
    """linalg_lu_factor(Tensor A, *, bool pivot=True) -> (Tensor LU, Tensor pivots)"""
    return linalg_lu_factor_ex(A, pivot=pivot)[:2]


@lowers("aten.linalg_lu_factor_ex.default")
def linalg_lu_factor_ex(A, *, pivot=True, check_errors=False):
    """linalg_lu_factor_ex(Tensor A, *, bool pivot=True, bool check_errors=False) -> (Tensor LU, Tensor pivots, Tensor info)"""  # noqa: E501
    if not pivot:
        raise RefusedError("an LU factorisation with pivot=False is not supported, by torch on the CPU neither")
    packed, pivots, _ = lax.linalg.lu(A)
    return packed, pivots + 1, _zero_pivot(packed)


def _zero_pivot(packed):
    """The place of the first zero on the diagonal of U counted from one, or 0."""
    zero = jnp.diagonal(packed, axis1=-2, axis2=-1) == 0
    if zero.shape[-1] == 0:
        return jnp.zeros(packed.shape[:-2], jnp.int32)
    return jnp.where(zero.any(-1), jnp.argmax(zero, -1) + 1, 0).astype(jnp.int32)


@lowers("aten.linalg_lu_solve.default")
def linalg_lu_solve(LU, pivots, B, *, left=True, adjoint=False):
    """linalg_lu_solve(Tensor LU, Tensor pivots, Tensor B, *, bool left=True, bool adjoint=False) -> Tensor"""
    if not left:
        return linalg_lu_solve(LU, pivots, B.mT.conj(), adjoint=not adjoint).mT.conj()
    rows = _rows(pivots, LU.shape[-1])
    lower = partial(broadcast_solve_triangular, upper=False)
    upper = partial(broadcast_solve_triangular, upper=True)
    if adjoint:
        half = upper(LU.mT.conj(), lower(LU.mT.conj(), B), unit=True)
        return _permuted(half, jnp.argsort(rows, axis=-1))
    return upper(LU, lower(LU, _permuted(B, rows), unit=True))


def _rows(pivots, size):
    """The permutation that torch's pivots stand for: the rows of A in the order of those of L U."""
    return lax.linalg.lu_pivots_to_permutation(pivots.astype(jnp.int32) - 1, size)


def _permuted(b, rows):
    batch = jnp.broadcast_shapes(b.shape[:-2], rows.shape[:-1])
    b = jnp.broadcast_to(b, (*batch, *b.shape[-2:]))
    return jnp.take_along_axis(b, jnp.broadcast_to(rows, (*batch, rows.shape[-1]))[..., None], axis=-2)


@lowers("aten.lu_unpack.default")
def lu_unpack(LU_data, LU_pivots, unpack_data=True, unpack_pivots=True):
    """lu_unpack(Tensor LU_data, Tensor LU_pivots, bool unpack_data=True, bool unpack_pivots=True) -> (Tensor P, Tensor L, Tensor U)"""  # noqa: E501
    rows, columns = LU_data.shape[-2:]
    least = min(rows, columns)
    permutation = lower = upper = jnp.zeros((0,), LU_data.dtype)
    if unpack_pivots:
        permutation = jax.nn.one_hot(_rows(LU_pivots, rows), rows, dtype=LU_data.dtype).mT
    if unpack_data:
        lower = jnp.tril(LU_data[..., :least], -1) + jnp.eye(rows, least, dtype=LU_data.dtype)
        upper = jnp.triu(LU_data[..., :least, :])
    return permutation, lower, upper


@lowers("aten.ormqr.default")
def ormqr(x, input2, input3, left=True, transpose=False):
    """ormqr(Tensor self, Tensor input2, Tensor input3, bool left=True, bool transpose=False) -> Tensor"""
    return _ormqr(x, input2, input3, left, transpose)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _ormqr(packed, tau, other, left, transpose):
    return lax.linalg.ormqr(packed, tau, other, left=left, transpose=transpose)


@_ormqr.defjvp
def _ormqr_jvp(left, transpose, primals, tangents):
    def reflected(packed, tau, other):
        if not left:  # x Q = (Q^H x^H)^H
            return _apply(packed, tau, other.mT.conj(), not transpose).mT.conj()
        return _apply(packed, tau, other, transpose)

    return _ormqr(*primals, left, transpose), jax.jvp(reflected, primals, tangents)[1]


def _apply(packed, tau, x, adjoint):
    return _reflect(packed, tau.conj() if adjoint else tau, x, reverse=not adjoint)


@lowers("aten.linalg_qr.default")
def linalg_qr(A, mode="reduced"):
    """linalg_qr(Tensor A, str mode="reduced") -> (Tensor Q, Tensor R)"""
    if mode == "r":
        return jnp.zeros((0,), A.dtype), jnp.linalg.qr(A, mode="r")
    return tuple(jnp.linalg.qr(A, mode=mode))


def broadcast_solve_triangular(a, b, *, upper, unit=False):
    """`solve_triangular` of matrices whose batches broadcast; reads one triangle of `a`."""
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(t, (*batch, *t.shape[-2:])) for t in (a, b))
    return solve_triangular(a, b, lower=not upper, unit_diagonal=unit)


def product(a, b):
    """A product of matrices in torch's precision."""
    return jnp.matmul(a, b, precision=PRECISION)
