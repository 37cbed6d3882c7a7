"""Convolutions over one-dimensional signals."""

from __future__ import annotations

import jax
from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    dilations = [block.conv1.dilation[0] for block in module.blocks]

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x = net.conv("stem", x.transpose(0, 2, 1), 4, 4)
        for index, dilation in enumerate(dilations):
            name, padding = f"blocks.{index}", 2 * dilation
            out = net.conv(f"{name}.conv1", net.group_norm(f"{name}.norm", x, 8), 1, padding, dilation=dilation)
            x = x + net.conv(f"{name}.conv2", jax.nn.relu(out), 1, padding, dilation=dilation)
        return net.dense("head", jnp.mean(net.avg_pool(x, 4), 1)), net.moved

    return run
