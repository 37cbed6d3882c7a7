"""Recurrent layers: the backward written by hand is that of the plain scan."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import check
from torch import nn

from esper.jax_backend.platform.recurrent import GRU, LSTM, RELU, TANH, Given, _scan, scan

STEPS, BATCH, SIZE = 6, 2, 3
# For each cell: gates, states, and whether the state's share has a bias of its own.
CELLS = {
    "gru": (GRU, 3, 1, True),
    "lstm": (LSTM, 4, 2, False),
    "relu": (RELU, 1, 1, False),
    "tanh": (TANH, 1, 1, False),
}


def given(name, steps=STEPS):
    cell, gates, states, has_bias = CELLS[name]
    keys = iter(jax.random.split(jax.random.key(1), 6))
    state = tuple(jax.random.normal(next(keys), (BATCH, SIZE)) for _ in range(states))
    inputs = jax.random.normal(next(keys), (steps, BATCH, gates * SIZE))
    weight = jax.random.normal(next(keys), (gates * SIZE, SIZE))
    return cell, Given(inputs, state, weight, jax.random.normal(next(keys), (gates * SIZE,)) if has_bias else None)


def loss(run, given):
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(run(given)))


def agree(found, wanted, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", CELLS)
def test_derivatives(name, reverse):
    cell, at = given(name)

    def of(scan):
        first = jax.grad(partial(loss, partial(scan, cell, reverse)))
        second = jax.grad(lambda at: sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(first(at))))
        return jax.jit(lambda at: (first(at), second(at), jax.jvp(partial(scan, cell, reverse), (at,), (at,))))

    agree(of(scan)(at), of(_scan)(at))


@pytest.mark.parametrize("name", CELLS)
def test_no_steps(name):
    cell, at = given(name, steps=0)
    found = jax.grad(partial(loss, partial(scan, cell, False)))(at)
    assert found.inputs.shape == at.inputs.shape
    assert not found.weight.any()


def test_gradients_by_example():
    cell, at = given("lstm")
    axes = Given(1, 0, None, None)

    def one(at):
        spread = Given(at.inputs[:, None], tuple(s[None] for s in at.state), at.weight, at.bias)
        return loss(partial(scan, cell, False), spread)

    found = jax.vmap(jax.grad(one), (axes,))(at)
    wanted = jax.grad(partial(loss, partial(scan, cell, False)))(at)
    agree(found.weight.sum(0), wanted.weight)
    agree(jax.grad(lambda at: jnp.sum(jax.vmap(one, (axes,))(at)))(at), wanted)


def test_the_weight_learns_from_one_product():
    """No step adds to the weight's gradient: the backward's scan carries the state's cotangents alone."""
    cell, at = given("lstm")
    jaxpr = jax.make_jaxpr(jax.grad(partial(loss, partial(scan, cell, False))))(at)
    carried = [e.params["num_carry"] for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert carried == [2, 2]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_against_torch(kind, dtype):
    torch.manual_seed(0)
    layer = kind(3, 4, num_layers=2, bidirectional=True).to(dtype)
    check(layer, torch.randn(5, 2, 3, dtype=dtype))
