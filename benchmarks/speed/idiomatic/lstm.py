"""LSTMs: one cell, scanned over time."""

from __future__ import annotations

import jax
from jax import lax
from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module):
    layers = module.lstm.num_layers

    def run(params, stats, inputs, train):
        net, (x,) = Net(params, stats, train), inputs
        x = x.transpose(1, 0, 2)
        for layer in range(layers):
            x = lstm(params, f"lstm.{{}}_l{layer}", x)
        return net.dense("head", x[-1]), net.moved

    return run


def lstm(params, place, x):
    """(time, batch, features) to (time, batch, width)."""
    by_input, by_state, bias1, bias2 = (
        params[place.format(part)] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )

    def cell(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ by_input + h @ by_state + bias1 + bias2, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], by_state.shape[0]))
    return lax.scan(cell, (zeros, zeros), x)[1]
