"""Recurrent layers and cells against eager torch."""

import jax
import pytest
import torch
from parity_checks import check, lower
from torch import nn

from esper.jax_backend.evaluate import evaluate

LAYERS = [
    ("gru", nn.GRU, {}),
    ("lstm", nn.LSTM, {}),
    ("relu", nn.RNN, {"nonlinearity": "relu"}),
    ("tanh", nn.RNN, {}),
]
OPTIONS = [
    ("plain", {}),
    ("batch-first", {"batch_first": True}),
    ("both-ways", {"bidirectional": True}),
    ("everything", {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}),
    ("no-bias", {"bias": False}),
    ("two-layers", {"num_layers": 2}),
]


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(layer, **options):
    torch.manual_seed(0)
    return layer(3, 4, **options)


@pytest.mark.parametrize("options", [o[1] for o in OPTIONS], ids=[o[0] for o in OPTIONS])
@pytest.mark.parametrize(("layer", "kind"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_layer(layer, kind, options):
    check(build(layer, **kind, **options), rand(5, 2, 3))


@pytest.mark.parametrize(("layer", "kind"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_unbatched(layer, kind):
    check(build(layer, **kind), rand(5, 3))


@pytest.mark.parametrize(("layer", "kind"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_train_mode_without_dropout(layer, kind):
    check(build(layer, num_layers=2, **kind), rand(5, 2, 3), train=True)


@pytest.mark.parametrize(("layer", "kind"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_given_state(layer, kind):
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = build(layer, num_layers=2, **kind)

        def forward(self, x, *state):
            return self.layer(x, state if len(state) > 1 else state[0])

    states = [rand(2, 2, 4, seed=i) for i in range(2 if layer is nn.LSTM else 1)]
    check(Stateful(), rand(5, 2, 3), *states)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [o[1] for o in OPTIONS], ids=[o[0] for o in OPTIONS])
def test_projection(options):
    check(build(nn.LSTM, proj_size=2, **options), rand(5, 2, 3))


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_one_step(layer):
    check(build(layer), rand(1, 2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_16_bit(layer, dtype):
    check(build(layer).to(dtype), rand(3, 2, 3).to(dtype))


CELLS = [
    ("gru", nn.GRUCell, {}),
    ("lstm", nn.LSTMCell, {}),
    ("relu", nn.RNNCell, {"nonlinearity": "relu"}),
    ("tanh", nn.RNNCell, {}),
]


@pytest.mark.parametrize("bias", [True, False], ids=["", "no-bias"])
@pytest.mark.parametrize(("cell", "kind"), [row[1:] for row in CELLS], ids=[row[0] for row in CELLS])
def test_cell(cell, kind, bias):
    check(build(cell, bias=bias, **kind), rand(2, 3))
    check(build(cell, bias=bias, **kind), rand(3))


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_dropout_is_between_layers_only(layer):
    program, params, buffers, inputs, constants = lower(build(layer, num_layers=2, dropout=0.5), (rand(5, 2, 3),), True)
    keys = jax.random.key(0), jax.random.key(1)
    first, second = (evaluate(program, params, buffers, inputs, key, constants=constants)[0] for key in keys)
    assert (first[1][0] == second[1][0]).all()  # the first layer's last state
    assert not (first[0] == second[0]).all()


def test_dropout_of_a_single_layer_draws_nothing():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        layer = build(nn.LSTM, dropout=0.5)
    check(layer, rand(5, 2, 3), train=True)
