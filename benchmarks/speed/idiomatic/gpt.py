"""Causal language models."""

from __future__ import annotations

from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth, heads = len(module.blocks), module.blocks[0].attention.heads

    def run(params, stats, inputs, train):
        net, (ids,) = layers(params, stats, train), inputs
        length = ids.shape[1]
        x = net.embed("tokens", ids) + net.embed("positions", jnp.arange(length))
        seen = jnp.tril(jnp.ones((length, length), bool))
        for index in range(depth):
            x = net.block(f"blocks.{index}", x, heads, seen)
        return net.unembed("tokens", net.layer_norm("norm", x)), net.moved

    return run
