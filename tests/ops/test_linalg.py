"""Determinants, inverses and systems of equations against eager torch."""

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


CASES = [
    ("det", linalg.det, [regular(2, 3, 3)]),
    ("det-none", linalg.det, [rand(0, 0)]),
    ("det-one", linalg.det, [regular(1, 1)]),
    ("inv", linalg.inv, [regular(2, 3, 3)]),
    ("inv-ex", linalg.inv_ex, [regular(2, 3, 3)]),
    ("inverse", torch.inverse, [regular(3, 3)]),
    ("logdet", lambda x: torch.logdet(positive(x)), [rand(2, 3, 3)]),
    ("logdet-complex", torch.logdet, [regular(3, 3) + 1j * rand(3, 3)]),
    ("matrix-exp", torch.matrix_exp, [rand(2, 3, 3)]),
    ("matrix-power", lambda x: linalg.matrix_power(x, 3), [rand(2, 3, 3)]),
    ("matrix-power-negative", lambda x: linalg.matrix_power(x, -2), [regular(3, 3)]),
    ("pinv", linalg.pinv, [rand(2, 4, 3)]),
    ("pinv-atol", lambda x: linalg.pinv(x, atol=1.5), [rand(3, 4)]),
    ("pinv-hermitian", lambda x: linalg.pinv(x, hermitian=True), [regular(3, 3)]),
    ("pinv-none", linalg.pinv, [rand(2, 3, 0)]),
    ("pinv-rcond", lambda x: torch.ops.aten.linalg_pinv.rcond_tensor(x, torch.tensor([0.5, 0.01])), [rand(2, 3, 4)]),
    ("pinv-rtol", lambda x: linalg.pinv(x, rtol=torch.tensor([0.5, 0.01])), [rand(2, 3, 4)]),
    ("pinverse", torch.pinverse, [rand(4, 3)]),
    ("slogdet", linalg.slogdet, [regular(2, 3, 3)]),
    ("solve", linalg.solve, [regular(2, 3, 3), rand(2, 3, 2)]),
    ("solve-ex", linalg.solve_ex, [regular(2, 3, 3), rand(2, 3, 2)]),
    ("solve-right", lambda a, b: linalg.solve(a, b, left=False), [regular(3, 3), rand(2, 3)]),
    ("solve-vector", linalg.solve, [regular(3, 3), rand(3)]),
    ("solve-vectors", linalg.solve, [regular(2, 3, 3), rand(2, 3)]),
    ("solve-broadcast", linalg.solve, [regular(3, 3), rand(2, 3, 2)]),
    ("tensorinv", lambda x: linalg.tensorinv(x, ind=1), [rand(6, 2, 3)]),
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


def test_a_singular_matrix_is_told():
    singular = torch.stack([torch.ones(2, 2), torch.eye(2), torch.zeros(2, 2)])
    check(lambda a: linalg.inv_ex(a).info, singular, gradients=False)
    check(lambda a: linalg.solve_ex(a, a).info, singular, gradients=False)
