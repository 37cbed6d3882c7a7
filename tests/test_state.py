"""What a forward changes of its module: parameters move on with the model, Python attributes do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import esper
from esper.errors import EsperError


def test_a_renormalised_embedding_trains_as_in_torch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(6, 4, max_norm=0.7), nn.Linear(4, 2))
    model, tokens = esper.wrap(net), torch.tensor([[0, 1, 1], [5, 2, 0]])
    tx = optax.sgd(0.5)

    @jax.jit
    def step(model, opt_state):
        def loss(params):
            out, moved = model.replace(params=params).apply(jnp.asarray(tokens.numpy()), train=True)
            return (out**2).sum(), moved

        (_, moved), grads = jax.value_and_grad(loss, has_aux=True)(model.params)
        updates, opt_state = tx.update(grads, opt_state, moved.params)
        return moved.replace(params=optax.apply_updates(moved.params, updates)), opt_state

    opt_state, optimizer = tx.init(model.params), torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(5):
        model, opt_state = step(model, opt_state)
        optimizer.zero_grad()
        (net(tokens) ** 2).sum().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        np.testing.assert_allclose(model.params["host"][name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


class Once(nn.Module):
    """Halves its weight in the first call of an evaluation."""

    def __init__(self):
        super().__init__()
        self.linear, self.halved = nn.Linear(3, 3), False

    def forward(self, x):
        if not self.halved:
            with torch.no_grad():
                self.linear.weight.mul_(0.5)
            self.halved = True
        return self.linear(x)


def test_a_write_that_a_flag_guards_stays_inside_the_call():
    net, x = Once(), torch.randn(2, 3)
    model = esper.wrap(net)
    with pytest.warns(UserWarning, match="halved"):
        _, moved = model.apply(x)
    expected = net(x)
    assert torch.allclose(expected, net(x))
    for state in (model, moved, moved.apply(x)[1]):
        torch.testing.assert_close(state(x), expected.detach())


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_a_number_that_changes_is_told():
    with pytest.warns(UserWarning, match="calls"):
        esper.wrap(nn.Sequential(Counter()))(torch.ones(2))


class Checked(nn.Module):
    def forward(self, x):
        if x.max() > 10:
            raise ValueError("too large")
        return x * 2


def test_a_check_that_is_left_out_is_told_with_its_place():
    with pytest.warns(UserWarning, match=r"test_state\.py:\d+"):
        out = esper.wrap(Checked())(torch.ones(2))
    assert out.tolist() == [2, 2]


class Caught(nn.Module):
    def forward(self, x):
        try:
            if x.max() > 10:
                raise ValueError("too large")
            return x * 2
        except ValueError:
            return x


def test_a_raise_that_the_forward_catches_is_a_branch():
    with pytest.raises(EsperError, match=r"Caught.*test_state\.py:\d+|test_state\.py:\d+"):
        esper.wrap(Caught())(torch.ones(2))


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.max() > 10 else x


def test_a_failed_capture_names_the_module_the_line_and_the_next_move():
    net = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 2), Branching())})["encoder"]
    with pytest.raises(EsperError, match=r"1 \(Branching\) at test_state\.py:\d+.*torch\.where"):
        esper.wrap(net)(torch.ones(1, 2))


def test_an_operator_sized_by_data_says_so():
    class Counts(nn.Module):
        def forward(self, x):
            return torch.bincount(x, minlength=4)

    with pytest.raises(EsperError, match="depends on values"):
        esper.wrap(Counts())(torch.tensor([1, 2]))
