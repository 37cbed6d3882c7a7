"""Reductions and cumulative operators: dims, keepdim, ties, NaN, no elements, symbolic batch."""

import math

import pytest
import torch
from parity_checks import check

INF, NAN = math.inf, math.nan
X = torch.tensor([[[1.0, -2.0, 3.0, 3.0], [0.0, 0.5, -1.5, 2.0], [4.0, 4.0, -4.0, 0.25]]] * 2)
X[1] = X[1].flip(-1) * 0.5
ALL = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
FLOATS, NUMBERS = ALL[:3], ALL[:4]

# name: (function of (tensor, keyword arguments), dtypes)
OVER_DIMS = {
    "all": (torch.all, ALL),
    "amax": (torch.amax, ALL),
    "amin": (torch.amin, ALL),
    "any": (torch.any, ALL),
    "linalg_vector_norm": (torch.linalg.vector_norm, FLOATS),
    "logsumexp": (torch.logsumexp, NUMBERS),
    "mean": (torch.mean, FLOATS),
    "nanmean": (torch.nanmean, FLOATS[:1]),
    "nansum": (torch.nansum, FLOATS),
    "norm": (torch.norm, FLOATS),
    "std": (torch.std, FLOATS),
    "sum": (torch.sum, ALL),
    "var": (torch.var, FLOATS),
    "var_mean": (torch.var_mean, FLOATS[:1]),
    "std_mean": (torch.std_mean, FLOATS[:1]),
    "count_nonzero": (lambda x, dim, keepdim: torch.count_nonzero(x, dim), ALL),
}


@pytest.mark.parametrize("name", OVER_DIMS)
def test_over_dimensions(name):
    function, dtypes = OVER_DIMS[name]
    inputs = [X.abs().to(d) if d is torch.uint8 else X.to(d) for d in dtypes]

    def run(*xs):
        first, *others = xs
        at_dims = [((1,), False), ((0, 2), True), ((-1,), True)]
        return [function(first, dim=d, keepdim=k) for d, k in at_dims] + [
            function(x, dim=(-1,), keepdim=False) for x in others
        ]

    check(run, *inputs)


OVER_ALL = {
    "all": (torch.all, ALL),
    "aminmax": (torch.aminmax, NUMBERS),
    "any": (torch.any, ALL),
    "argmax": (torch.argmax, NUMBERS),
    "argmin": (torch.argmin, NUMBERS),
    "argmax_keepdim": (lambda x: x.argmax(keepdim=True), NUMBERS),
    "count_nonzero": (torch.count_nonzero, ALL),
    "max": (torch.max, NUMBERS),
    "mean": (torch.mean, FLOATS),
    "mean_dtype": (lambda x: x.mean(dtype=torch.float32), NUMBERS),
    "median": (torch.median, FLOATS[:1]),
    "median_int": (torch.median, (torch.int64,)),
    "min": (torch.min, NUMBERS),
    "norm": (torch.norm, FLOATS),
    "prod": (lambda x: x[0].prod(), (torch.float32, torch.int64, torch.bool)),
    "std": (torch.std, FLOATS),
    "std_biased": (lambda x: x.std(unbiased=False), FLOATS[:1]),
    "sum": (torch.sum, ALL),
    "sum_dtype": (lambda x: x.sum(dtype=torch.float32), ALL),
    "var_correction": (lambda x: torch.var(x, correction=2), FLOATS[:1]),
    "var_std_mean": (lambda x: torch.var_mean(x) + torch.std_mean(x), FLOATS[:1]),
}


@pytest.mark.parametrize("name", OVER_ALL)
def test_over_everything(name):
    function, dtypes = OVER_ALL[name]
    check(lambda *xs: [function(x) for x in xs], *(X.abs().to(d) if d is torch.uint8 else X.to(d) for d in dtypes))


TIES = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -1.0, -5.0, -5.0]])
OF_TIES = {
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin((0, 1)),
    "aminmax": lambda x: torch.aminmax(x, dim=1),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(-1, keepdim=True),
    "cummax": lambda x: x.cummax(1),
    "cummin": lambda x: x.cummin(0),
    "max": torch.max,
    "max_dim": lambda x: x.max(1),
    "max_keepdim": lambda x: x.max(0, keepdim=True),
    "median": lambda x: x.median(1).values,
    "min_dim": lambda x: x.min(-1),
    "norm_inf": lambda x: torch.linalg.vector_norm(x, INF, dim=1),
    "norm_-inf": lambda x: torch.linalg.vector_norm(x, -INF, dim=1),
    "std_of_equals": lambda x: x.std(1),
}


@pytest.mark.parametrize("name", OF_TIES)
def test_ties(name):
    check(OF_TIES[name], TIES)


@pytest.mark.parametrize("order", [0, 0.5, 1, 1.5, 2, 3, -1, INF, -INF])
def test_norms_are_finite_at_zero(order):
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.0], [0.5, 3.0, -3.0]])
    x = x + 1 if order == -1 else x
    check(lambda x: torch.linalg.vector_norm(x, order, dim=1), x)


OF_NAN = {
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(1),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(1),
    "cummax": lambda x: x.cummax(1),
    "cumsum": lambda x: x.cumsum(1),
    "max_dim": lambda x: x.max(1),
    "median": lambda x: x.median(1),
    "median_all": torch.median,
    "nanmean": lambda x: x.nanmean(1),
    "nanmedian": torch.nanmedian,
    "nanmedian_dim": lambda x: x.nanmedian(1).values,
    "nansum": torch.nansum,
    "logsumexp": lambda x: x.logsumexp(1),
}


@pytest.mark.parametrize("name", OF_NAN)
def test_nan(name):
    check(OF_NAN[name], torch.tensor([[1.0, NAN, 3.0], [INF, -INF, 1.0], [2.0, 1.0, 0.0]]), gradients=False)


OTHERS = {
    "all_dims": lambda x: x.all((0, 1)),
    "cumprod": lambda x: x.cumprod(1),
    "cumprod_zero_gradient": lambda x: (x * 0 + torch.tensor([2.0, 0.0, 3.0, 0.0])).cumprod(-1) + x,
    "cumsum": lambda x: x.cumsum(-1),
    "cumsum_dtype": lambda x: x.long().cumsum(0, dtype=torch.float32),
    "dist": lambda x: torch.dist(x[0], x[1], 3),
    "logcumsumexp": lambda x: x.logcumsumexp(2),
    "logsumexp_dims": lambda x: x.logsumexp((0, 2), keepdim=True),
    "mean_of_symbolic_batch": lambda x: x.mean() + x.mean(0).sum(),
    "norm_fro": lambda x: x.norm(dim=(1, 2)),
    "norm_1": lambda x: x.norm(p=1, dim=1, keepdim=True),
    "norm_dtype": lambda x: torch.linalg.vector_norm(x, dtype=torch.float32),
    "prod": lambda x: x.prod(1),
    "prod_keepdim": lambda x: x.prod(-1, keepdim=True),
    "quantile": lambda x: x.quantile(0.3, dim=1),
    "quantile_all": lambda x: x.quantile(torch.tensor([0.25, 0.5])),
    "sum_no_dims": lambda x: x.sum(()),
    "trace": lambda x: x[0].trace(),
    "normalize": lambda x: torch.nn.functional.normalize(x * 0, dim=1) + torch.nn.functional.normalize(x, dim=2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other(name):
    check(OTHERS[name], X)


CUMULATIVE = {
    "cumsum": torch.cumsum,
    "cumprod": torch.cumprod,
    "cummax": torch.cummax,
    "cummin": torch.cummin,
}


@pytest.mark.parametrize("name", CUMULATIVE)
def test_cumulative_dtypes(name):
    check(lambda *xs: [CUMULATIVE[name](x, -1) for x in xs], *(X[0, :2].to(d) for d in NUMBERS))


NO_DIMENSIONS = {
    "amax": lambda x: x.amax(),
    "argmax": lambda x: x.argmax(0),
    "cummax": lambda x: x.cummax(0),
    "cumsum": lambda x: x.cumsum(0),
    "kthvalue": lambda x: x.kthvalue(1),
    "logsumexp": lambda x: x.logsumexp(0),
    "max": lambda x: x.max(0),
    "mean": lambda x: x.mean(),
    "norm": lambda x: x.norm(),
    "prod": lambda x: x.prod(0),
    "sort": lambda x: x.sort(),
    "sum": lambda x: x.sum(-1, keepdim=True),
    "topk": lambda x: x.topk(1),
    "var": lambda x: x.var(unbiased=False),
}


@pytest.mark.parametrize("name", NO_DIMENSIONS)
def test_without_dimensions(name):
    check(NO_DIMENSIONS[name], torch.tensor(1.5))


NOTHING = {
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(1),
    "prod": lambda x: x.prod(1),
    "all": lambda x: x.all(1),
    "any": lambda x: x.any(),
    "norm": lambda x: torch.linalg.vector_norm(x, 2, 1),
    "amax_of_other": lambda x: x.amax(0),
    "cumsum": lambda x: x.cumsum(1),
    "logsumexp": lambda x: x.logsumexp(1),
}


@pytest.mark.parametrize("name", NOTHING)
def test_of_nothing(name):
    check(NOTHING[name], torch.zeros(2, 0, 3))
