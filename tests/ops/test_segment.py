"""Reductions of consecutive segments."""

import pytest
import torch
from parity_checks import check

X = torch.tensor([1.0, 2.0, 2.0, 0.0, 5.0, 0.0, 0.0, -1.0])
LENGTHS = torch.tensor([3, 0, 1, 4])
REDUCTIONS = ["sum", "mean", "prod", "max", "min"]


@pytest.mark.parametrize("initial", [None, 2])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_segments(reduce, initial):
    def run(x, lengths, rows, few):
        whole = torch.segment_reduce(x, reduce, lengths=lengths, initial=initial)
        return whole, torch.segment_reduce(rows, reduce, lengths=few, initial=initial)

    check(run, X, LENGTHS, X.view(4, 2), torch.tensor([1, 0, 3]))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_offsets(reduce):
    check(lambda x, at: torch.segment_reduce(x, reduce, offsets=at), X, torch.tensor([0, 3, 3, 4, 8]))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_rows_of_segments(reduce):
    x = torch.stack([X, X.flip(0)])
    lengths = torch.stack([LENGTHS, LENGTHS.flip(0)])
    check(lambda x, n: torch.segment_reduce(x, reduce, lengths=n, axis=1, initial=1), x, lengths)
