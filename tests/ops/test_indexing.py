"""Reading and writing by index, tables of rows."""

import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from parity_checks import check
from torch import nn

from esper.errors import TraceError
from esper.jax_backend.registry import lowering

X = torch.arange(24.0).reshape(2, 3, 4) / 3 - 2
I = torch.tensor([2, 0, 0, -1])  # noqa: E741
ROWS = torch.tensor([2, 0, 1])
PLACES = torch.tensor([[[0, 1, 2, 0]], [[2, 2, 1, 0]]])
SRC = torch.arange(8.0).reshape(2, 1, 4) - 3

CASES = {
    "gather": lambda x: (x.gather(1, PLACES), x.gather(-1, ROWS.expand(2, 2, 3))),
    "index": lambda x: (x[:, I], x[0, I], x[:, :, I], x[I.abs() % 2]),
    "index_add": lambda x: x.index_add(1, ROWS, x, alpha=2),
    "index_add_repeated": lambda x: x.index_add(1, torch.tensor([0, 0, 2]), x),
    "index_copy": lambda x: x.index_copy(1, ROWS, x * 2),
    "index_fill": lambda x: (x.index_fill(1, torch.tensor([0, 2]), 7), x.index_fill(-1, ROWS, x[0, 0, 0])),
    "index_grid": lambda x: x[:, I[:, None] % 3, ROWS],
    "index_put": lambda x: x.index_put((torch.tensor([0, 1]), torch.tensor([2, -1])), x[0, :2]),
    "index_put_accumulate": lambda x: x.index_put((torch.tensor([0, 0]),), x[:1] * 2, accumulate=True),
    "index_put_mask": lambda x: x.index_put((x > 1,), torch.tensor(9.0).to(x.dtype)),
    "index_put_none": lambda x: torch.ops.aten.index_put(x, [None, ROWS[:2]], x[:, :1]),
    "index_select": lambda x: (x.index_select(1, ROWS), x.index_select(-1, torch.tensor(2))),
    "index_separated": lambda x: x[torch.tensor([0, 1]), :, torch.tensor([3, -1])],
    "masked_scatter": lambda x: x.masked_scatter(x > 0, x.flip(0)),
    "put": lambda x: torch.ops.aten.put(x, torch.tensor([3, 5]), x[0, 0, :2]),
    "scatter": lambda x: (x.scatter(1, ROWS.view(1, 3, 1).expand(2, 3, 4), x * 2), x.scatter(2, PLACES, 5)),
    "scatter_add": lambda x: x.scatter_add(1, PLACES, x[:, :1]),
    "setitem": lambda x: setitem(x),
    "take": lambda x: (x.take(torch.tensor([[0, 5], [-1, 7]])), x.take_along_dim(torch.tensor([1, 0]))),
    "take_along_dim": lambda x: (x.take_along_dim(x.argsort(2), 2), x.take_along_dim(ROWS.view(1, 3, 1) % 2, 0)),
}


def setitem(x):
    x = x.clone()
    x[:, ROWS] = x[:, :1] * 3
    x[0, ROWS, ROWS] += 1
    x[x < 0] = 0
    x[:, torch.tensor([True, False, True])] = 2
    return x


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    check(lambda *xs: [CASES[name](x) for x in xs], X, X.bfloat16(), X.long())


@pytest.mark.parametrize("reduce", ["sum", "prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
def test_scatter_reduce(reduce, include_self):
    def run(x, src):
        return x.scatter_reduce(1, PLACES, src, reduce, include_self=include_self)

    # Ties at 2, so that the shares of amax and amin show; zeros alone and in company.
    src = torch.tensor([[[2.0, 2.0, 0.5, 2.0]], [[1.5, 1.5, -1.0, 3.0]]])
    check(run, X, src)
    check(run, X.long(), src.long())
    check(run, X, torch.tensor([[[0.0, 1.0, 3.0, 2.0]], [[0.0, 0.0, 0.0, 2.0]]]))
    if reduce in ("amax", "amin"):
        check(run, torch.where(X > 1, torch.inf, X), torch.where(src > 1, torch.inf, src))


@pytest.mark.parametrize("reduce", ["prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_index_reduce(reduce, include_self):
    rows = torch.tensor([2, 0, 2, 2])

    def run(x, src):
        return x.index_reduce(1, rows, src, reduce, include_self=include_self)

    src = torch.tensor([[[2.0, 0.0, -1.0, 0.5]], [[2.0, 0.0, 0.0, 1.5]]]).repeat(1, 4, 1) + rows[:, None] // 2
    check(run, X, src)
    check(run, X.long(), src.long())
    check(lambda x, s: x.index_reduce(0, rows[1], s, reduce, include_self=include_self), X[0, 0, 0], X[0, 0, 1])


def test_nonzero_static():
    x = torch.tensor([[1, 0, 2], [0, 3, 4]])
    check(lambda x: (x.nonzero_static(size=2), x.nonzero_static(size=6, fill_value=7)), x)
    check(lambda x: x.nonzero_static(size=2), torch.tensor(3.0))


SCALARS = {
    "gather": lambda x: x.gather(0, torch.tensor([0, 0])[:1].squeeze()),
    "index_select": lambda x: x.index_select(0, torch.tensor([0])),
    "index_fill": lambda x: x.index_fill(0, torch.tensor([0]), 3),
    "scatter": lambda x: x.scatter(0, torch.tensor(0), 5.0),
    "scatter_add": lambda x: x.scatter_add(0, torch.tensor(0), x),
    "take": lambda x: x.take(torch.tensor([0, 0])),
}


@pytest.mark.parametrize("name", SCALARS)
def test_without_dimensions(name):
    check(SCALARS[name], torch.tensor(1.5))


TOKENS = torch.tensor([[1, 3, 1], [0, 2, 3]])


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 3}, {"padding_idx": -1}, {"scale_grad_by_freq": True}], ids=str
)
def test_embedding(options):
    torch.manual_seed(0)
    check(nn.Embedding(4, 3, **options), TOKENS)


def test_embedding_in_half_precision_and_of_nothing():
    torch.manual_seed(0)
    check(nn.Embedding(4, 3).bfloat16(), TOKENS)
    check(lambda w: F.embedding(torch.zeros(2, 0, dtype=torch.int64), w), torch.ones(4, 3))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_embedding_bag(mode, padding_idx):
    torch.manual_seed(0)
    check(nn.EmbeddingBag(4, 3, mode=mode, padding_idx=padding_idx), TOKENS)
    offsets = torch.tensor([0, 2, 2, 5])
    check(
        lambda w, t: F.embedding_bag(t, w, offsets, mode=mode, padding_idx=padding_idx),
        torch.randn(4, 3),
        TOKENS.view(-1),
    )


def test_embedding_bag_weights():
    check(
        lambda w, s: F.embedding_bag(TOKENS, w, per_sample_weights=s, mode="sum"), torch.randn(4, 3), torch.rand(2, 3)
    )


def test_one_hot():
    check(lambda t: F.one_hot(t, 5), TOKENS)


def test_indices_out_of_range_show_and_have_no_gradient():
    import jax

    x = jnp.arange(6.0).reshape(2, 3)
    take = lowering("aten.index_select.default").rule
    assert jnp.isnan(take(x, 1, jnp.array([7]))).all()
    assert (jax.grad(lambda x: jnp.nansum(take(x, 1, jnp.array([7, 1]))))(x) == jnp.array([0.0, 1.0, 0.0])).all()
    assert (lowering("aten.index_add.default").rule(x, 1, jnp.array([7]), jnp.ones((2, 1))) == x).all()


@pytest.mark.parametrize(
    "function",
    [lambda x: x[x > 0], lambda x: x.index_put((x > 0,), x.reshape(-1)), lambda x: F.one_hot(x.long())],
)
def test_sizes_that_depend_on_data_are_refused(function):
    with pytest.raises(TraceError, match="depend"):
        check(function, torch.ones(3))
