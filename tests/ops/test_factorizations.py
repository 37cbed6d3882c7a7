"""Triangular and orthogonal factorisations against eager torch."""

import pytest
import torch
from parity_checks import check

linalg = torch.linalg


def rand(*shape, seed=0, dtype=None):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(*shape, dtype=None):
    """Positive definite matrices whose triangles differ: which one is read matters, and so does where gradients go."""
    x = rand(*shape, dtype=dtype)
    return x @ x.mH + 3 * torch.eye(shape[-1]) + torch.triu(rand(*shape, seed=1, dtype=dtype), 1) / 10


def symmetric(*shape, dtype=None, hermitian=False):
    x = rand(*shape, dtype=dtype)
    return x + (x.mH if hermitian else x.mT)


PACKED, SCALES = torch.geqrf(rand(2, 5, 3))
COMPLEX_PACKED, COMPLEX_SCALES = torch.geqrf(rand(5, 3, dtype=torch.complex64))
SQUARE = rand(2, 3, 3, seed=2)
LU, PIVOTS = linalg.lu_factor(SQUARE)
REFLECTIONS = [PACKED, SCALES]

CASES = [
    ("cholesky", linalg.cholesky, [positive(2, 3, 3)]),
    ("cholesky-complex", linalg.cholesky, [positive(3, 3, dtype=torch.complex64)]),
    ("cholesky-complex-upper", lambda x: torch.cholesky(x, upper=True), [positive(3, 3, dtype=torch.complex64)]),
    ("cholesky-ex", linalg.cholesky_ex, [positive(2, 3, 3)]),
    ("cholesky-inverse", torch.cholesky_inverse, [positive(2, 3, 3)]),
    ("cholesky-inverse-upper", lambda x: torch.cholesky_inverse(x, upper=True), [positive(3, 3)]),
    ("cholesky-none", linalg.cholesky, [rand(2, 0, 0)]),
    ("cholesky-solve", torch.cholesky_solve, [rand(2, 3, 2), positive(3, 3)]),
    ("cholesky-solve-upper", lambda b, x: torch.cholesky_solve(b, x, upper=True), [rand(3, 2), positive(3, 3)]),
    ("cholesky-upper", lambda x: linalg.cholesky(x, upper=True), [positive(3, 3)]),
    ("householder-complex", linalg.householder_product, [COMPLEX_PACKED, COMPLEX_SCALES]),
    ("householder-product", linalg.householder_product, REFLECTIONS),
    ("lu", linalg.lu, [SQUARE]),
    ("lu-factor", linalg.lu_factor, [SQUARE]),
    ("lu-factor-ex-tall", linalg.lu_factor_ex, [rand(2, 4, 3)]),
    ("lu-none", linalg.lu, [rand(0, 3, 3)]),
    ("lu-solve", linalg.lu_solve, [LU, PIVOTS, rand(2, 3, 4)]),
    ("lu-solve-adjoint", lambda *x: linalg.lu_solve(*x, adjoint=True), [LU, PIVOTS, rand(3, 4)]),
    ("lu-solve-right", lambda *x: linalg.lu_solve(*x, left=False), [LU, PIVOTS, rand(2, 4, 3)]),
    ("lu-tall", linalg.lu, [rand(4, 3)]),
    ("lu-unpack", torch.lu_unpack, [LU, PIVOTS]),
    ("lu-unpack-data", lambda *x: torch.lu_unpack(*x, unpack_pivots=False), [LU, PIVOTS]),
    ("lu-unpack-pivots", lambda *x: torch.lu_unpack(*x, unpack_data=False)[0], [LU, PIVOTS]),
    ("lu-wide", linalg.lu, [rand(2, 3, 5)]),
    ("orgqr", torch.orgqr, REFLECTIONS),
    ("ormqr", torch.ormqr, [*REFLECTIONS, rand(2, 5, 4)]),
    ("ormqr-complex", lambda *x: torch.ormqr(*x, left=False), [COMPLEX_PACKED, COMPLEX_SCALES, COMPLEX_PACKED.mT]),
    ("ormqr-right", lambda *x: torch.ormqr(*x, left=False, transpose=True), [*REFLECTIONS, rand(2, 4, 5)]),
    ("ormqr-transpose", lambda *x: torch.ormqr(*x, transpose=True), [*REFLECTIONS, rand(2, 5, 4)]),
    ("qr", linalg.qr, [rand(2, 4, 3)]),
    ("qr-wide", linalg.qr, [rand(2, 3, 4)]),
]

UNDIFFERENTIATED = [
    ("geqrf", torch.geqrf, [rand(2, 4, 3)]),
    ("ldl-factor", linalg.ldl_factor, [symmetric(4, 5, 5)]),
    ("ldl-factor-complex", linalg.ldl_factor, [symmetric(2, 5, 5, dtype=torch.complex64)]),
    ("ldl-factor-ex", linalg.ldl_factor_ex, [torch.stack([symmetric(3, 3), torch.ones(3, 3), torch.zeros(3, 3)])]),
    ("ldl-factor-none", linalg.ldl_factor_ex, [rand(2, 0, 0)]),
    ("ldl-solve", linalg.ldl_solve, [*linalg.ldl_factor(symmetric(4, 5, 5)), rand(4, 5, 2)]),
    ("qr-complete", lambda x: linalg.qr(x, "complete"), [rand(4, 3)]),
    ("qr-r", lambda x: linalg.qr(x, "r"), [rand(4, 3)]),
]


@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated")
@pytest.mark.parametrize(("function", "inputs"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_factorization(function, inputs):
    check(function, *inputs)


@pytest.mark.parametrize(
    ("function", "inputs"), [c[1:] for c in UNDIFFERENTIATED], ids=[c[0] for c in UNDIFFERENTIATED]
)
def test_factorization_that_torch_does_not_differentiate(function, inputs):
    check(function, *inputs, gradients=False)


def test_hermitian_pivots():
    matrix = symmetric(4, 5, 5, dtype=torch.complex64, hermitian=True)
    factors = linalg.ldl_factor(matrix, hermitian=True)
    assert (factors.pivots < 0).any()
    check(lambda a: linalg.ldl_factor(a, hermitian=True), matrix, gradients=False)
    check(lambda *x: linalg.ldl_solve(*x, hermitian=True), *factors, matrix[..., :2], gradients=False)


def test_a_matrix_without_factors_is_told():
    indefinite = torch.stack([torch.diag(torch.tensor(d)) for d in ([1.0, 2, 3], [1.0, -1, 1], [1.0, 1, 0])])
    check(lambda a: linalg.cholesky_ex(a).info, indefinite, gradients=False)
    check(lambda a: linalg.lu_factor_ex(a).info, torch.ones(2, 3, 3), gradients=False)
