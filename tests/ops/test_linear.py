"""Matrix products and linear algebra against eager torch."""

import pytest
import torch
from parity_checks import check
from torch import nn
from torch.nn import functional as F

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def rand(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def several(*shapes, dtype=torch.float32):
    return [rand(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


PRODUCTS = [
    ("addbmm", lambda x, a, b: torch.addbmm(x, a, b, beta=0.5, alpha=2), [(2, 4), (3, 2, 5), (3, 5, 4)]),
    ("addmm", torch.addmm, [(4,), (2, 3), (3, 4)]),
    ("addmm-scaled", lambda x, a, b: torch.addmm(x, a, b, beta=0.5, alpha=2), [(2, 4), (2, 3), (3, 4)]),
    ("addmv", lambda x, a, b: torch.addmv(x, a, b, beta=0.5, alpha=2), [(2,), (2, 3), (3,)]),
    ("addr", lambda x, a, b: torch.addr(x, a, b, beta=0.5, alpha=2), [(2, 3), (2,), (3,)]),
    ("baddbmm", lambda x, a, b: torch.baddbmm(x, a, b, beta=0.5, alpha=2), [(3, 2, 4), (3, 2, 5), (3, 5, 4)]),
    ("bilinear", F.bilinear, [(2, 3), (2, 4), (5, 3, 4), (5,)]),
    ("bilinear-3d", F.bilinear, [(2, 2, 3), (2, 2, 4), (5, 3, 4)]),
    ("bmm", torch.bmm, [(3, 2, 4), (3, 4, 5)]),
    ("dot", torch.dot, [(4,), (4,)]),
    ("einsum-batch", lambda a, b: torch.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)]),
    ("einsum-diagonal", lambda a: torch.einsum("ii->i", a), [(3, 3)]),
    ("einsum-ellipsis", lambda a, b: torch.einsum("...ij,...j->...i", a, b), [(2, 3, 4), (2, 4)]),
    ("einsum-implicit", lambda a, b: torch.einsum("kb,bA", a, b), [(3, 2), (2, 4)]),
    ("einsum-one", lambda a, b: torch.einsum("ij,jk->ik", a, b), [(3, 1), (4, 2)]),
    ("einsum-sublist", lambda a, b: torch.einsum(a, [0, 1], b, [2, 1], [2, 0]), [(3, 2), (4, 2)]),
    ("einsum-three", lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), [(3, 2), (2, 4), (4, 3)]),
    ("einsum-trace", lambda a: torch.einsum("ii", a), [(3, 3)]),
    ("inner", torch.inner, [(2, 3), (4, 3)]),
    ("inner-number", torch.inner, [(), (4, 3)]),
    ("kron", torch.kron, [(2, 3), (3, 2)]),
    ("kron-ranks", torch.kron, [(2,), (2, 3, 2)]),
    ("linear", F.linear, [(2, 3), (4, 3), (4,)]),
    ("linear-1d", F.linear, [(3,), (4, 3), (4,)]),
    ("linear-3d", F.linear, [(2, 5, 3), (4, 3)]),
    ("linear-4d", F.linear, [(2, 3, 2, 3), (4, 3), (4,)]),
    ("linear-empty", F.linear, [(0, 3), (4, 3), (4,)]),
    ("linear-no-features", F.linear, [(2, 0), (4, 0), (4,)]),
    ("linear-vector", F.linear, [(2, 3), (3,)]),
    ("matmul-1-1", torch.matmul, [(3,), (3,)]),
    ("matmul-1-2", torch.matmul, [(3,), (3, 2)]),
    ("matmul-1-3", torch.matmul, [(3,), (2, 3, 2)]),
    ("matmul-2-1", torch.matmul, [(2, 3), (3,)]),
    ("matmul-2-2", torch.matmul, [(2, 3), (3, 4)]),
    ("matmul-2-3", torch.matmul, [(2, 3), (2, 3, 4)]),
    ("matmul-3-1", torch.matmul, [(2, 4, 3), (3,)]),
    ("matmul-3-2", torch.matmul, [(2, 4, 3), (3, 2)]),
    ("matmul-broadcast", torch.matmul, [(2, 1, 4, 3), (5, 3, 2)]),
    ("mm", torch.mm, [(2, 3), (3, 2)]),
    ("mm-empty", torch.mm, [(2, 0), (0, 2)]),
    ("multi-dot", lambda *m: torch.linalg.multi_dot(m), [(2, 3), (3, 4), (4, 2)]),
    ("mv", torch.mv, [(2, 3), (3,)]),
    ("outer", torch.outer, [(3,), (2,)]),
    ("tensordot", lambda a, b: torch.tensordot(a, b, 2), [(2, 3, 4), (3, 4, 5)]),
    ("tensordot-dims", lambda a, b: torch.tensordot(a, b, ([0, -1], [1, 0])), [(2, 3, 4), (4, 2, 5)]),
    ("tensordot-one", lambda a, b: torch.tensordot(a, b, ([1], [0])), [(2, 1), (4, 5)]),
    ("vdot", torch.vdot, [(4,), (4,)]),
    ("vecdot", lambda a, b: torch.linalg.vecdot(a, b, dim=0), [(3, 2), (3, 2)]),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("function", "shapes"), [p[1:] for p in PRODUCTS], ids=[p[0] for p in PRODUCTS])
def test_product(function, shapes, dtype):
    check(function, *several(*shapes, dtype=dtype))


ENDS = torch.tensor([2, 2, 8], dtype=torch.int32)  # the second group is empty
GROUPED = [
    ("batches", None, [(3, 2, 8), (3, 8, 8)]),
    ("columns", ENDS, [(3, 4, 8), (8, 8)]),
    ("rows", ENDS, [(8, 8), (3, 8, 8)]),
    ("summands", ENDS, [(4, 8), (8, 8)]),
]


@pytest.mark.parametrize(("offs", "shapes"), [g[1:] for g in GROUPED], ids=[g[0] for g in GROUPED])
def test_grouped_product(offs, shapes):
    # Torch's own shape rule, which captures use, knows this dtype only.
    check(lambda a, b: F.grouped_mm(a, b, offs=offs), *several(*shapes, dtype=torch.bfloat16))


INTEGER = [
    ("addmm", lambda x, a, b: torch.addmm(x, a, b, beta=3, alpha=2), [(2, 2), (2, 3), (3, 2)]),
    ("einsum", lambda a, b: torch.einsum("ij,jk->ik", a, b), [(2, 3), (3, 2)]),
    ("matmul", torch.matmul, [(2, 3), (3, 2)]),
    ("mv", torch.mv, [(2, 3), (3,)]),
    ("outer", torch.outer, [(2,), (3,)]),
]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8], ids=str)
@pytest.mark.parametrize(("function", "shapes"), [p[1:] for p in INTEGER], ids=[p[0] for p in INTEGER])
def test_integer_product(function, shapes, dtype):
    check(function, *((4 * rand(*shape)).to(dtype) for shape in shapes))


COMPLEX = [
    ("linear", F.linear, [(2, 3), (4, 3), (4,)]),
    ("matmul", torch.matmul, [(2, 3), (3, 2)]),
    ("vdot", torch.vdot, [(3,), (3,)]),
]


@pytest.mark.parametrize(("function", "shapes"), [p[1:] for p in COMPLEX], ids=[p[0] for p in COMPLEX])
def test_complex_product(function, shapes):
    check(function, *(torch.complex(rand(*shape), rand(*shape, seed=9)) for shape in shapes))


def test_outer_promotes():
    check(torch.outer, torch.arange(3), rand(2))
    check(torch.kron, torch.arange(3), rand(2, dtype=torch.bfloat16))


def test_beta_zero_ignores_nan():
    check(lambda x, a, b: torch.addmm(x, a, b, beta=0), torch.full((2, 2), torch.nan), rand(2, 3), rand(3, 2))


def test_float32_products_are_true_float32():
    # 1 + 2**-12 needs more bits than the short formats that accelerators multiply in by default.
    x = torch.full((1, 1), 1 + 2**-12)
    check(torch.mm, x, x)


def test_16_bit_sums_do_not_saturate():
    check(F.linear, torch.ones(1, 4096, dtype=torch.bfloat16), torch.ones(1, 4096, dtype=torch.bfloat16))


@pytest.mark.parametrize("bias", [True, False])
def test_modules(bias):
    check(nn.Linear(3, 4, bias=bias), rand(2, 3))
    check(nn.Bilinear(3, 4, 5, bias=bias), rand(2, 3), rand(2, 4))


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_scaled_product(out):
    x, y = (torch.linspace(-300, 400, 64).view(4, 16).to(torch.float8_e4m3fn) for _ in range(2))

    def run(x, y, a, b):
        return torch._scaled_mm(x, y.T, a, b, out_dtype=out, scale_result=None).to(torch.float32)

    check(run, x, y, torch.tensor(0.5), torch.tensor(0.01), gradients=False)


def test_scaled_product_by_rows():
    x, y = (torch.linspace(-2, 3, 64).view(4, 16).to(torch.float8_e4m3fn) for _ in range(2))
    scales = torch.arange(1.0, 5.0)[:, None], torch.arange(1.0, 5.0)[None]
    rows = F.ScalingType.RowWise

    def run(x, y, a, b):
        return F.scaled_mm(x, y.T, a, rows, b, rows, output_dtype=torch.bfloat16)

    check(run, x, y, *scales, gradients=False)
