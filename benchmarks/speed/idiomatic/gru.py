"""GRUs in both directions: one cell, scanned over time."""

from __future__ import annotations

from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth = module.gru.num_layers

    def run(params, stats, inputs, train):
        net, (ids,) = layers(params, stats, train), inputs
        x = net.embed("words", ids).transpose(1, 0, 2)
        for layer in range(depth):
            there = net.gru(f"gru.{{}}_l{layer}", x, reverse=False)
            back = net.gru(f"gru.{{}}_l{layer}_reverse", x, reverse=True)
            x = jnp.concatenate([there, back], -1)
        return net.dense("head", x.transpose(1, 0, 2)), net.moved

    return run
