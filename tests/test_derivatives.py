"""Derivatives inside a forward, beside kernels and with other batch sizes."""

import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn

import esper
from esper import SeedLifecycleState as State
from esper.errors import EsperError


class Energy(nn.Module):
    """An energy and its force."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        position = x * 1.0
        energy = self.net(position)
        (slope,) = torch.autograd.grad(energy.sum(), position, create_graph=True)
        return energy, -slope


def test_the_force_feels_a_kernel():
    torch.manual_seed(0)
    model = esper.wrap(Energy(), target_layers=["net.0"], seeds_per_layer=1)
    model, _ = esper.germinate(model, None, layer="net.0", blueprint="mlp", key=jax.random.key(0))
    kernels = jax.tree.map(lambda leaf: leaf + 0.3, model.params["kernels"])
    model = model.replace(params={**model.params, "kernels": kernels})
    plain = model(jnp.ones((4, 3)))[1]
    for state in (State.GRAFTING, State.ACTIVE):
        model = esper.transition(model, layer="net.0", to=state)
    model = esper.set_alpha(model, layer="net.0", alpha=1.0)
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    by_jax = -jax.grad(lambda at: model(at)[0].sum())(x)
    assert jnp.allclose(model(x)[1], by_jax, atol=1e-6)
    assert not jnp.allclose(model(jnp.ones((4, 3)))[1], plain, atol=1e-3)


def test_one_capture_serves_every_batch():
    net = Energy()
    model = esper.wrap(net)
    for size in (2, 5, 3):
        x = torch.randn(size, 3, requires_grad=True)
        for found, wanted in zip(model(x), net(x), strict=True):
            torch.testing.assert_close(found, wanted.detach())
    assert model.stats()["traces"] == 1


class Unused(nn.Module):
    def forward(self, x):
        y = x * 2
        return torch.autograd.grad(x.sin().sum(), y)[0]


def test_an_input_that_was_not_used_is_told():
    with pytest.raises(EsperError, match=r"not used in the graph.*allow_unused"):
        esper.wrap(Unused())(torch.ones(3))
