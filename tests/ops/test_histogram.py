"""Counts against eager torch."""

import pytest
import torch
from parity_checks import check

X = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.0, 2.0, -3.0])

HISTOGRAMS = {
    "histc": lambda x: torch.histc(x, 4),
    "histc-range": lambda x: torch.histc(x, 4, 0, 1),
    "histc-whole": lambda x: torch.histc(x, 3, 0, 2),
    "histc-elsewhere": lambda x: torch.histc(x, 3, 10, 20),
    "histc-point": lambda x: torch.histc(x, 3, 1, 1),
}


@pytest.mark.parametrize("name", HISTOGRAMS)
@pytest.mark.parametrize("x", [X, X.view(3, 3), X[:1], X[:0]], ids=["vector", "matrix", "one", "none"])
def test_histogram(name, x):
    check(HISTOGRAMS[name], x, gradients=False)


def test_nan_is_not_counted():
    check(lambda x: torch.histc(x, 4, 0, 1), torch.tensor([0.1, torch.nan, 0.9]), gradients=False)


def test_counts_have_no_gradient():
    check(lambda x: x.sum() + torch.histc(x, 4).sum(), X)


EDGES = torch.tensor([-1.0, 0.1, 0.5, 1.0])
COUNTED = {
    "bins": lambda x, w: torch.histogram(x, 4),
    "range": lambda x, w: torch.histogram(x, 3, range=(0.0, 1.0)),
    "point": lambda x, w: torch.histogram(x, 3, range=(1.0, 1.0)),
    "weight": lambda x, w: torch.histogram(x, 4, weight=w),
    "density": lambda x, w: torch.histogram(x, 4, weight=w, density=True),
    "edges": lambda x, w: torch.histogram(x, EDGES, weight=w),
    "edges-density": lambda x, w: torch.histogram(x, EDGES, density=True),
}
SPREAD = torch.linspace(-1.0, 1.0, 12).view(2, 3, 2).sin()
MANY = {
    "bins": lambda x, w: torch.histogramdd(x, [2, 3]),
    "int": lambda x, w: torch.histogramdd(x, 3, weight=w),
    "range": lambda x, w: torch.histogramdd(x, [2, 3], range=(0.0, 1.0, -1.0, 0.5), density=True),
    "edges": lambda x, w: torch.histogramdd(x, [EDGES, EDGES[:2]], weight=w, density=True),
}


@pytest.mark.parametrize("name", COUNTED)
def test_histogram_with_edges(name):
    check(lambda x, w: tuple(COUNTED[name](x, w)), X, X.square(), gradients=False)


def test_histogram_of_nothing():
    check(lambda x: tuple(torch.histogram(x, 3)), X[:0], gradients=False)


@pytest.mark.parametrize("name", MANY)
def test_histogramdd(name):
    def run(x, w):
        hist, edges = MANY[name](x, w)
        return hist, *edges

    check(run, SPREAD, SPREAD[..., 0].square(), gradients=False)
