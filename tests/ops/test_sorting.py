"""Order: ties, NaN, descending, integers at their limits."""

import math

import pytest
import torch
from parity_checks import check

X = torch.tensor([[3.0, -1.0, 2.0, 0.5, 7.0], [0.0, -4.0, 2.5, 9.0, 1.0]])
EDGES = torch.tensor([-1.0, 0.0, 1.0, 1.0, 4.0])
TIED = torch.tensor([2.0, 1.0, 2.0, 0.0, 1.0, 2.0])

CASES = {
    "argsort": lambda x: x.argsort(),
    "argsort_descending": lambda x: x.argsort(0, descending=True),
    "argsort_stable": lambda x: torch.argsort(x, dim=1, stable=True),
    "bucketize": lambda x: torch.bucketize(x, EDGES),
    "bucketize_right": lambda x: torch.bucketize(x, EDGES, right=True, out_int32=True),
    "kthvalue": lambda x: x.kthvalue(2, 1, keepdim=True),
    "median": lambda x: x.median(1),
    "mode": lambda x: (x.mode(), (x * 0 + TIED[:5].to(x.dtype)).mode(1, keepdim=True)),
    "msort": torch.msort,
    "searchsorted": lambda x: torch.searchsorted(EDGES, x),
    "searchsorted_rows": lambda x: torch.searchsorted(torch.stack([EDGES, EDGES + 1]), x, side="right"),
    "searchsorted_scalar": lambda x: torch.searchsorted(x[0].sort().values, 1.5),
    "searchsorted_sorter": lambda x: torch.searchsorted(x, x + 0.25, sorter=x.argsort(1)),
    "sort": lambda x: x.sort(),
    "sort_descending": lambda x: x.sort(1, descending=True),
    "sort_dim": lambda x: x.sort(0),
    "topk": lambda x: x.topk(2),
    "topk_dim": lambda x: x.topk(1, 0),
    "topk_smallest": lambda x: x.topk(3, largest=False),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    inputs = [X, X.bfloat16(), X.half(), X.long()] if "search" not in name and "bucket" not in name else [X]
    check(lambda *xs: [CASES[name](x) for x in xs], *inputs)


@pytest.mark.parametrize("descending", [False, True])
def test_stable_sort_keeps_the_order_of_ties(descending):
    check(lambda x: torch.sort(x, stable=True, descending=descending), TIED)


@pytest.mark.parametrize("descending", [False, True])
def test_nan_is_the_largest(descending):
    x = torch.tensor([1.0, math.nan, -math.inf, math.inf, 0.0, -0.0])
    check(lambda x: x.sort(stable=True, descending=descending), x, gradients=False)
    check(lambda x: x.topk(3, largest=descending), x[:5], gradients=False)


def test_smallest_of_the_smallest_integers():
    check(lambda x, y: (x.topk(2, largest=False), y.topk(2, largest=False)),
          torch.tensor([-128, 127, 5], dtype=torch.int8), torch.tensor([0, 255, 5], dtype=torch.uint8))  # fmt: skip


def test_symbolic_batch():
    program = check(lambda x: x.topk(2)[0].sum(1) + x.sort()[0][:, 0], X)
    assert program.user_inputs[0].type.shape[0] == "s0" or isinstance(program.user_inputs[0].type.shape[0], str)


def test_quantile_without_dimensions():
    q = torch.tensor([0.25, 0.5])
    check(lambda x: (x.quantile(0.3), x.quantile(q), x.quantile(q, 0, keepdim=True)), torch.tensor(2.5))


@pytest.mark.parametrize("median", [torch.median, torch.nanmedian])
def test_infinite_median(median):
    check(median, torch.tensor([1.0, math.inf, math.inf]))
