"""BERT-like encoders."""

from __future__ import annotations

from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth, heads = len(module.layers), module.layers[0].attention.heads

    def run(params, stats, inputs, train):
        net, (ids, mask) = layers(params, stats, train), inputs
        x = net.layer_norm("norm", net.embed("tokens", ids) + params["positions"][: ids.shape[1]])
        for index in range(depth):
            name = f"layers.{index}"
            mixed = net.attention(f"{name}.attention", x, heads, mask[:, None, None, :])
            x = net.layer_norm(f"{name}.norm1", x + mixed)
            x = net.layer_norm(f"{name}.norm2", x + net.mlp(f"{name}.mlp", x))
        return net.dense("head", jnp.tanh(net.dense("pooler", x[:, 0]))), net.moved

    return run
