"""GRUs in both directions: one cell, scanned over time."""

from __future__ import annotations

import jax
from jax import lax
from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth = module.gru.num_layers

    def run(params, stats, inputs, train):
        net, (ids,) = layers(params, stats, train), inputs
        x = net.embed("words", ids).transpose(1, 0, 2)
        for layer in range(depth):
            there = gru(params, f"gru.{{}}_l{layer}", x, reverse=False)
            back = gru(params, f"gru.{{}}_l{layer}_reverse", x, reverse=True)
            x = jnp.concatenate([there, back], -1)
        return net.dense("head", x.transpose(1, 0, 2)), net.moved

    return run


def gru(params, place, x, reverse):
    """(time, batch, features) to (time, batch, width)."""
    by_input, by_state, bias1, bias2 = (
        params[place.format(part)] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )

    def cell(h, x):
        from_input, from_state = (jnp.split(part, 3, -1) for part in (x @ by_input + bias1, h @ by_state + bias2))
        r = jax.nn.sigmoid(from_input[0] + from_state[0])
        z = jax.nn.sigmoid(from_input[1] + from_state[1])
        h = (1 - z) * jnp.tanh(from_input[2] + r * from_state[2]) + z * h
        return h, h

    zeros = jnp.zeros((x.shape[1], by_state.shape[0]))
    return lax.scan(cell, zeros, x, reverse=reverse)[1]
