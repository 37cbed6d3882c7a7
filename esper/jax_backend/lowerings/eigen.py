"""Eigenvalues and singular values, by LAPACK on the CPU as in torch.

Vectors are determined up to a factor of modulus one each, and so are gradients only of what does not depend on
it: torch raises in backward for other losses, which XLA cannot.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from esper.jax_backend.lowerings.factorizations import hermitian
from esper.jax_backend.registry import lowers


@lowers("aten.linalg_eig.default")
def linalg_eig(x):
    """linalg_eig(Tensor self) -> (Tensor eigenvalues, Tensor eigenvectors)"""
    if x.shape[-1] == 0:
        values = linalg_eigvals(x)
        return values, jnp.zeros(x.shape, values.dtype)
    values, vectors = lax.linalg.eig(x, compute_left_eigenvectors=False, enable_eigvec_derivs=True)
    return values, vectors


@lowers("aten.linalg_eigh.default")
def linalg_eigh(A, UPLO="L"):
    """linalg_eigh(Tensor self, str UPLO="L") -> (Tensor eigenvalues, Tensor eigenvectors)"""
    # Mirrored here, since JAX's derivative reads both triangles.
    values, vectors = jnp.linalg.eigh(hermitian(A, UPLO.upper() == "U"), symmetrize_input=False)
    return values, vectors


@lowers("aten._linalg_eigh.default")
def _linalg_eigh(A, UPLO="L", compute_v=True):
    """_linalg_eigh(Tensor A, str UPLO="L", bool compute_v=True) -> (Tensor eigenvalues, Tensor eigenvectors)"""
    if compute_v:
        return linalg_eigh(A, UPLO)
    return linalg_eigvalsh(A, UPLO), jnp.zeros((0,), A.dtype)


@lowers("aten.linalg_eigvals.default", "aten._linalg_eigvals.default")
def linalg_eigvals(x):
    """linalg_eigvals(Tensor self) -> Tensor"""
    return lax.linalg.eig(x, compute_left_eigenvectors=False, compute_right_eigenvectors=False)[0]


@lowers("aten.linalg_eigvalsh.default")
def linalg_eigvalsh(x, UPLO="L"):
    """linalg_eigvalsh(Tensor self, str UPLO="L") -> Tensor"""
    return jnp.linalg.eigvalsh(hermitian(x, UPLO.upper() == "U"), symmetrize_input=False)


@lowers("aten.linalg_svd.default")
def linalg_svd(A, full_matrices=True, *, driver=None):
    """linalg_svd(Tensor A, bool full_matrices=True, *, str? driver=None) -> (Tensor U, Tensor S, Tensor Vh)"""
    u, s, vh = jnp.linalg.svd(A, full_matrices=False)
    if not full_matrices or A.shape[-2] == A.shape[-1]:
        return u, s, vh
    # What completes the bases has no gradient in torch either.
    whole_u, _, whole_vh = jnp.linalg.svd(lax.stop_gradient(A), full_matrices=True)
    rank = s.shape[-1]
    u = jnp.concatenate([u, whole_u[..., rank:]], -1)
    return u, s, jnp.concatenate([vh, whole_vh[..., rank:, :]], -2)


@lowers("aten._linalg_svd.default")
def _linalg_svd(A, full_matrices=False, compute_uv=True, *, driver=None):
    """_linalg_svd(Tensor A, bool full_matrices=False, bool compute_uv=True, *, str? driver=None) -> (Tensor U, Tensor S, Tensor Vh)"""  # noqa: E501
    if compute_uv:
        return linalg_svd(A, full_matrices)
    nothing = jnp.zeros((0,), A.dtype)
    return nothing, linalg_svdvals(A), nothing


@lowers("aten.linalg_svdvals.default")
def linalg_svdvals(A, *, driver=None):
    """linalg_svdvals(Tensor A, *, str? driver=None) -> Tensor"""
    return jnp.linalg.svd(A, compute_uv=False)
