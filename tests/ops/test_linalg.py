"""Factorisations against eager torch."""

import pytest
import torch
from parity_checks import check

linalg = torch.linalg


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def regular(*shape):
    """Well-conditioned square matrices."""
    return rand(*shape) + 3 * torch.eye(shape[-1])


def positive(x):
    return x @ x.mT + torch.eye(x.shape[-1])


def signless(u):
    """What does not depend on the signs of the columns, which are the factorisation's choice."""
    return u * u.sum(-2, keepdim=True)


def svd(x, full):
    u, s, vh = linalg.svd(x, full)
    return s, signless(u[..., : s.shape[-1]]), signless(vh.mT[..., : s.shape[-1]])


def eigh(x):
    values, vectors = linalg.eigh(positive(x))
    return values, signless(vectors)


CASES = [
    ("cholesky", lambda x: linalg.cholesky(positive(x)), [rand(2, 3, 3)]),
    ("cholesky-solve", lambda x, b: torch.cholesky_solve(b, linalg.cholesky(positive(x))), [rand(3, 3), rand(3, 2)]),
    ("cholesky-upper", lambda x: linalg.cholesky(positive(x), upper=True), [rand(3, 3)]),
    ("det", linalg.det, [regular(2, 3, 3)]),
    ("det-one", linalg.det, [regular(1, 1)]),
    ("eigh", eigh, [rand(3, 3)]),
    ("eigvalsh", lambda x: linalg.eigvalsh(positive(x), "U"), [rand(2, 3, 3)]),
    ("inv", linalg.inv, [regular(2, 3, 3)]),
    ("inverse", torch.inverse, [regular(3, 3)]),
    ("logdet", lambda x: torch.logdet(positive(x)), [rand(2, 3, 3)]),
    ("matrix-exp", torch.matrix_exp, [rand(2, 3, 3)]),
    ("matrix-power", lambda x: linalg.matrix_power(x, 3), [rand(2, 3, 3)]),
    ("matrix-power-negative", lambda x: linalg.matrix_power(x, -2), [regular(3, 3)]),
    ("qr", linalg.qr, [rand(2, 4, 3)]),
    ("slogdet", linalg.slogdet, [regular(2, 3, 3)]),
    ("solve", linalg.solve, [regular(2, 3, 3), rand(2, 3, 2)]),
    ("solve-right", lambda a, b: linalg.solve(a, b, left=False), [regular(3, 3), rand(2, 3)]),
    ("solve-vector", linalg.solve, [regular(3, 3), rand(3)]),
    ("solve-vectors", linalg.solve, [regular(2, 3, 3), rand(2, 3)]),
    ("solve-broadcast", linalg.solve, [regular(3, 3), rand(2, 3, 2)]),
    ("svd", lambda x: svd(x, False), [rand(2, 4, 3)]),
    ("svdvals", linalg.svdvals, [rand(2, 3, 4)]),
    ("triangular", lambda a, b: linalg.solve_triangular(a, b, upper=True), [regular(3, 3), rand(3, 2)]),
    (
        "triangular-right",
        lambda a, b: linalg.solve_triangular(a, b, upper=False, left=False, unitriangular=True),
        [regular(2, 3, 3), rand(2, 2, 3)],
    ),
    ("triangular-broadcast", lambda a, b: linalg.solve_triangular(a, b, upper=False), [regular(3, 3), rand(2, 3, 2)]),
]


@pytest.mark.parametrize(("function", "inputs"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_linalg(function, inputs):
    check(function, *inputs)


def test_negative_determinant_has_no_logarithm():
    check(torch.logdet, torch.diag(torch.tensor([1.0, -2.0])), gradients=False)


def test_full_factors():
    check(lambda x: (linalg.svd(x)[1], linalg.qr(x, "complete")[1]), rand(4, 3), gradients=False)
    check(lambda x: linalg.qr(x, "r")[1], rand(4, 3), gradients=False)
