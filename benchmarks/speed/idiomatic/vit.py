"""Vision transformers."""

from __future__ import annotations

from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth, heads, patch = len(module.blocks), module.blocks[0].attention.heads, module.patches.stride[0]

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x = net.conv("patches", x.transpose(0, 2, 3, 1), patch)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(params["token"], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + params["positions"]
        for index in range(depth):
            x = net.block(f"blocks.{index}", x, heads)
        return net.dense("head", net.layer_norm("norm", x)[:, 0]), net.moved

    return run
