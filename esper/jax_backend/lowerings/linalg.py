"""Factorisations and what follows from them, computed by LAPACK on the CPU as in torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from esper.jax_backend.platform.precision import PRECISION
from esper.jax_backend.registry import lowers


@lowers("aten.cholesky.default")
def cholesky(x, upper=False):
    """cholesky(Tensor self, bool upper=False) -> Tensor"""
    return jnp.linalg.cholesky(x, upper=upper, symmetrize_input=False)


@lowers("aten.cholesky_solve.default")
def cholesky_solve(x, input2, upper=False):
    """cholesky_solve(Tensor self, Tensor input2, bool upper=False) -> Tensor"""
    lower = input2.mT.conj() if upper else input2
    half = _solve_triangular(lower, x, upper=False)
    return _solve_triangular(lower.mT.conj(), half, upper=True)


@lowers("aten.linalg_cholesky.default")
def linalg_cholesky(x, *, upper=False):
    """linalg_cholesky(Tensor self, *, bool upper=False) -> Tensor"""
    return cholesky(x, upper)


@lowers("aten.det.default", "aten.linalg_det.default")
def linalg_det(A):
    """linalg_det(Tensor A) -> Tensor"""
    return jnp.linalg.det(A)


@lowers("aten.linalg_eigh.default")
def linalg_eigh(x, UPLO="L"):
    """linalg_eigh(Tensor self, str UPLO="L") -> (Tensor eigenvalues, Tensor eigenvectors)"""
    values, vectors = jnp.linalg.eigh(x, UPLO=UPLO, symmetrize_input=False)
    return values, vectors


@lowers("aten.linalg_eigvalsh.default")
def linalg_eigvalsh(x, UPLO="L"):
    """linalg_eigvalsh(Tensor self, str UPLO="L") -> Tensor"""
    return jnp.linalg.eigvalsh(x, UPLO=UPLO, symmetrize_input=False)


@lowers("aten.inverse.default", "aten.linalg_inv.default")
def linalg_inv(A):
    """linalg_inv(Tensor A) -> Tensor"""
    return jnp.linalg.inv(A)


@lowers("aten.linalg_matrix_exp.default", "aten.matrix_exp.default")
def linalg_matrix_exp(x):
    """linalg_matrix_exp(Tensor self) -> Tensor"""
    return jax.scipy.linalg.expm(x)


@lowers("aten.linalg_matrix_power.default", "aten.matrix_power.default")
def linalg_matrix_power(x, n):
    """linalg_matrix_power(Tensor self, int n) -> Tensor"""
    with jax.default_matmul_precision(PRECISION.name.lower()):
        return jnp.linalg.matrix_power(x, n)


@lowers("aten.linalg_qr.default")
def linalg_qr(A, mode="reduced"):
    """linalg_qr(Tensor A, str mode="reduced") -> (Tensor Q, Tensor R)"""
    if mode == "r":
        return jnp.zeros((0,), A.dtype), jnp.linalg.qr(A, mode="r")
    return tuple(jnp.linalg.qr(A, mode=mode))


@lowers("aten.linalg_slogdet.default", "aten.slogdet.default")
def linalg_slogdet(A):
    """linalg_slogdet(Tensor A) -> (Tensor sign, Tensor logabsdet)"""
    return tuple(jnp.linalg.slogdet(A))


@lowers("aten.linalg_solve.default")
def linalg_solve(A, B, *, left=True):
    """linalg_solve(Tensor A, Tensor B, *, bool left=True) -> Tensor"""
    # Torch takes B for a batch of vectors where its shape is that of A without the last dimension.
    if B.ndim == 1 or (A.ndim - 1 == B.ndim and A.shape[:-1] == B.shape):
        return jnp.linalg.solve(A, B[..., None])[..., 0]
    return jnp.linalg.solve(A, B) if left else jnp.linalg.solve(A.mT, B.mT).mT


@lowers("aten.linalg_solve_triangular.default")
def linalg_solve_triangular(x, B, *, upper, left=True, unitriangular=False):
    """linalg_solve_triangular(Tensor self, Tensor B, *, bool upper, bool left=True, bool unitriangular=False) -> Tensor"""  # noqa: E501
    if left:
        return _solve_triangular(x, B, upper=upper, unit=unitriangular)
    return _solve_triangular(x.mT, B.mT, upper=not upper, unit=unitriangular).mT


@lowers("aten.linalg_svd.default")
def linalg_svd(A, full_matrices=True, *, driver=None):
    """linalg_svd(Tensor A, bool full_matrices=True, *, str? driver=None) -> (Tensor U, Tensor S, Tensor Vh)"""
    return tuple(jnp.linalg.svd(A, full_matrices=full_matrices))


@lowers("aten.linalg_svdvals.default")
def linalg_svdvals(A, *, driver=None):
    """linalg_svdvals(Tensor A, *, str? driver=None) -> Tensor"""
    return jnp.linalg.svd(A, compute_uv=False)


@lowers("aten.logdet.default")
def logdet(x):
    """logdet(Tensor self) -> Tensor"""
    sign, log = jnp.linalg.slogdet(x)
    return jnp.where(sign < 0, jnp.nan, log)


@lowers("aten.triangular_solve.default")
def triangular_solve(x, A, upper=True, transpose=False, unitriangular=False):
    """triangular_solve(Tensor self, Tensor A, bool upper=True, bool transpose=False, bool unitriangular=False) -> (Tensor solution, Tensor cloned_coefficient)"""  # noqa: E501
    if transpose:
        return _solve_triangular(A.mT, x, upper=not upper, unit=unitriangular), A
    return _solve_triangular(A, x, upper=upper, unit=unitriangular), A


def _solve_triangular(a, b, *, upper, unit=False):
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(t, (*batch, *t.shape[-2:])) for t in (a, b))
    return solve_triangular(a, b, lower=not upper, unit_diagonal=unit)
