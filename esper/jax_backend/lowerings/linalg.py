"""Determinants, inverses, powers and systems of equations, by LAPACK on the CPU as in torch.

XLA cannot raise for a singular matrix, where torch does: the result is NaN or infinite, and the `_ex` forms say so
in `info` as in torch.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.lowerings.eigen import linalg_eigh, linalg_svd
from esper.jax_backend.lowerings.factorizations import broadcast_solve_triangular, linalg_lu_factor_ex, product
from esper.jax_backend.platform.precision import PRECISION
from esper.jax_backend.promotion import is_complex
from esper.jax_backend.registry import lowers


@lowers("aten.det.default", "aten.linalg_det.default")
def linalg_det(A):
    """linalg_det(Tensor A) -> Tensor"""
    if A.shape[-1] == 0:
        return jnp.ones(A.shape[:-2], A.dtype)
    det = jnp.linalg.det(A)
    return jnp.where(det == 0, lax.stop_gradient(det), det)  # torch's gradient at a singular matrix is zero


@lowers("aten.inverse.default", "aten.linalg_inv.default")
def linalg_inv(A):
    """linalg_inv(Tensor A) -> Tensor"""
    return jnp.linalg.inv(A)


@lowers("aten.linalg_inv_ex.default")
def linalg_inv_ex(A, *, check_errors=False):
    """linalg_inv_ex(Tensor A, *, bool check_errors=False) -> (Tensor inverse, Tensor info)"""
    return linalg_inv(A), linalg_lu_factor_ex(A)[2]


@lowers("aten.linalg_matrix_exp.default", "aten.matrix_exp.default")
def linalg_matrix_exp(x):
    """linalg_matrix_exp(Tensor self) -> Tensor"""
    return jax.scipy.linalg.expm(x)


@lowers("aten.linalg_matrix_power.default", "aten.matrix_power.default")
def linalg_matrix_power(x, n):
    """linalg_matrix_power(Tensor self, int n) -> Tensor"""
    with jax.default_matmul_precision(PRECISION.name.lower()):
        return jnp.linalg.matrix_power(x, n)


@lowers("aten.linalg_pinv.atol_rtol_tensor", "aten.linalg_pinv.atol_rtol_float")
def linalg_pinv(x, *, atol=None, rtol=None, hermitian=False):
    """linalg_pinv.atol_rtol_tensor(Tensor self, *, Tensor? atol=None, Tensor? rtol=None, bool hermitian=False) -> Tensor"""  # noqa: E501
    real = x.real.dtype
    if rtol is None:
        rtol = _epsilon(x) if atol is None else jnp.where(jnp.asarray(atol) > 0, 0, _epsilon(x))
    return _pinv(x, jnp.asarray(0 if atol is None else atol, real), jnp.asarray(rtol, real), hermitian)


@lowers("aten.linalg_pinv.default", "aten.linalg_pinv.rcond_tensor")
def linalg_pinv_rcond(x, rcond, hermitian=False):
    """linalg_pinv(Tensor self, float rcond, bool hermitian=False) -> Tensor"""
    return linalg_pinv(x, rtol=rcond, hermitian=hermitian)


@lowers("aten.pinverse.default")
def pinverse(x, rcond=1e-15):
    """pinverse(Tensor self, float rcond=1e-15) -> Tensor"""
    return linalg_pinv(x, rtol=rcond)


@lowers("aten.linalg_slogdet.default", "aten.slogdet.default")
def linalg_slogdet(A):
    """linalg_slogdet(Tensor A) -> (Tensor sign, Tensor logabsdet)"""
    return tuple(jnp.linalg.slogdet(A))


@lowers("aten.linalg_solve.default")
def linalg_solve(A, B, *, left=True):
    """linalg_solve(Tensor A, Tensor B, *, bool left=True) -> Tensor"""
    if _is_vector(A, B):
        return jnp.linalg.solve(A, B[..., None])[..., 0]
    return jnp.linalg.solve(A, B) if left else jnp.linalg.solve(A.mT, B.mT).mT


@lowers("aten._linalg_solve_ex.default")
def linalg_solve_ex(A, B, *, left=True, check_errors=False):
    """_linalg_solve_ex(Tensor A, Tensor B, *, bool left=True, bool check_errors=False) -> (Tensor result, Tensor LU, Tensor pivots, Tensor info)"""  # noqa: E501
    # Torch may factorise the transpose; `torch.linalg.solve_ex` does not return the factors.
    return linalg_solve(A, B, left=left), *linalg_lu_factor_ex(A)


@lowers("aten.linalg_solve_triangular.default")
def linalg_solve_triangular(x, B, *, upper, left=True, unitriangular=False):
    """linalg_solve_triangular(Tensor self, Tensor B, *, bool upper, bool left=True, bool unitriangular=False) -> Tensor"""  # noqa: E501
    if left:
        return broadcast_solve_triangular(x, B, upper=upper, unit=unitriangular)
    return broadcast_solve_triangular(x.mT, B.mT, upper=not upper, unit=unitriangular).mT


@lowers("aten.linalg_tensorinv.default")
def linalg_tensorinv(x, ind=2):
    """linalg_tensorinv(Tensor self, int ind=2) -> Tensor"""
    return jnp.linalg.tensorinv(x, ind)


@lowers("aten.logdet.default")
def logdet(x):
    """logdet(Tensor self) -> Tensor"""
    sign, log = jnp.linalg.slogdet(x)
    return jnp.log(sign) + log if is_complex(x) else jnp.where(sign < 0, jnp.nan, log)


@lowers("aten.triangular_solve.default")
def triangular_solve(x, A, upper=True, transpose=False, unitriangular=False):
    """triangular_solve(Tensor self, Tensor A, bool upper=True, bool transpose=False, bool unitriangular=False) -> (Tensor solution, Tensor cloned_coefficient)"""  # noqa: E501
    if transpose:
        return broadcast_solve_triangular(A.mT, x, upper=not upper, unit=unitriangular), A
    return broadcast_solve_triangular(A, x, upper=upper, unit=unitriangular), A


def _is_vector(a, b):
    """Whether torch takes `b` for vectors: its shape is then that of `a` without the last dimension."""
    return b.ndim == 1 or (a.ndim - 1 == b.ndim and a.shape[:-1] == b.shape)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _pinv(x, atol, rtol, hermitian):
    if 0 in x.shape[-2:]:
        return jnp.zeros(x.mT.shape, x.dtype)
    if hermitian:
        values, left = linalg_eigh(x)
        right = left.mT.conj()
    else:
        left, values, right = linalg_svd(x, full_matrices=False)
    size = jnp.abs(values)
    cutoff = jnp.maximum(atol[..., None], rtol[..., None] * size.max(-1, keepdims=True))
    inverse = jnp.where(size > cutoff, 1 / values, 0).astype(x.dtype)
    return product(right.mT.conj() * inverse[..., None, :], left.mT.conj())


@_pinv.defjvp
def _pinv_jvp(hermitian, primals, tangents):
    # Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose
    # variables separate" (1973), for constant rank; with the matrix as it stands, Hermitian or not, as in torch.
    x, dx = primals[0], tangents[0]
    inverse = _pinv(*primals, hermitian)
    adjoint, dadjoint = inverse.mT.conj(), dx.mT.conj()
    rows = product(inverse, product(adjoint, dadjoint))
    columns = product(product(dadjoint, adjoint), inverse)
    change = product(inverse, product(dx, inverse))
    return inverse, rows - product(product(rows, x), inverse) + columns - product(inverse, product(x, columns)) - change


def _epsilon(a):
    """Torch's default tolerance, relative to the largest singular value."""
    return float(jnp.finfo(a.dtype).eps) * max(a.shape[-2:])
