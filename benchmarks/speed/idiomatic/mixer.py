"""MLP-Mixers."""

from __future__ import annotations

from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth, patch = len(module.blocks), module.patches.stride[0]

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x = net.conv("patches", x.transpose(0, 2, 3, 1), patch)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for index in range(depth):
            name = f"blocks.{index}"
            turned = net.layer_norm(f"{name}.norm1", x).transpose(0, 2, 1)
            x = x + net.mlp(f"{name}.over_patches", turned).transpose(0, 2, 1)
            x = x + net.mlp(f"{name}.over_channels", net.layer_norm(f"{name}.norm2", x))
        return net.dense("head", jnp.mean(net.layer_norm("norm", x), 1)), net.moved

    return run
