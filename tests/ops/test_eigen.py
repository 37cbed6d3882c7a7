"""Eigenvalues and singular values against eager torch."""

import pytest
import torch
from parity_checks import check

linalg = torch.linalg


def rand(*shape, seed=0, dtype=None):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def phaseless(vectors):
    """What does not depend on factors of modulus one of the columns, which are the decomposition's choice."""
    return vectors * vectors.sum(-2, keepdim=True).conj()


def eig(x):
    values, vectors = linalg.eig(x)
    return values, phaseless(vectors)


def eigh(x, uplo="L"):
    values, vectors = linalg.eigh(x, uplo)
    return values, phaseless(vectors)


def svd(x, full):
    u, s, vh = linalg.svd(x, full)
    rank = s.shape[-1]
    return s, phaseless(u[..., :rank]), phaseless(vh.mT[..., :rank])


def completed(x):
    """The projections onto what completes the bases, which have no gradient in torch."""
    u, s, vh = linalg.svd(x, full_matrices=True)
    rank = s.shape[-1]
    return u[..., rank:] @ u[..., rank:].mT, vh[..., rank:, :].mT @ vh[..., rank:, :]


# The matrices have triangles that differ: which one is read matters, and so does where gradients go.
CASES = [
    ("eig", eig, [rand(2, 3, 3)]),
    ("eig-complex", eig, [rand(3, 3, dtype=torch.complex64)]),
    ("eig-none", linalg.eig, [rand(2, 0, 0)]),
    ("eigh", eigh, [rand(2, 3, 3)]),
    ("eigh-complex", eigh, [rand(3, 3, dtype=torch.complex64)]),
    ("eigh-none", linalg.eigh, [rand(0, 3, 3)]),
    ("eigh-upper", lambda x: eigh(x, "U"), [rand(3, 3)]),
    ("eigvals", linalg.eigvals, [rand(2, 3, 3)]),
    ("eigvalsh", linalg.eigvalsh, [rand(2, 3, 3)]),
    ("eigvalsh-upper", lambda x: linalg.eigvalsh(x, "U"), [rand(2, 3, 3)]),
    ("svd", lambda x: svd(x, False), [rand(2, 4, 3)]),
    ("svd-complex", lambda x: svd(x, False)[0], [rand(3, 4, dtype=torch.complex64)]),
    ("svd-full", lambda x: svd(x, True), [rand(2, 4, 3)]),
    ("svd-full-wide", lambda x: svd(x, True), [rand(3, 5)]),
    ("svdvals", linalg.svdvals, [rand(2, 3, 4)]),
]


@pytest.mark.parametrize(("function", "inputs"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_eigen(function, inputs):
    check(function, *inputs)


def test_inner_operators():
    check(torch.ops.aten._linalg_eigvals, rand(3, 3), gradients=False)
    check(lambda x: torch.ops.aten._linalg_eigh(x, "U", False), rand(3, 3), gradients=False)
    check(lambda x: torch.ops.aten._linalg_eigh(x, "U")[0], rand(3, 3), gradients=False)
    check(lambda x: torch.ops.aten._linalg_svd(x, False, False), rand(3, 4), gradients=False)
    check(lambda x: torch.ops.aten._linalg_svd(x)[1], rand(3, 4), gradients=False)


def test_completed_bases():
    check(completed, rand(2, 5, 3), gradients=False)
    check(completed, rand(3, 5), gradients=False)
