"""U-Nets; classes come last."""

from __future__ import annotations

import jax
from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth = len(module.down)

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x, kept = x.transpose(0, 2, 3, 1), []
        for index in range(depth):
            x = double(net, f"down.{index}", x)
            kept.append(x)
            x = net.max_pool(x, 2, 2)
        x = double(net, "bottom", x)
        for index in range(depth):
            x = jnp.concatenate([kept.pop(), net.conv_transpose(f"grow.{index}", x, 2)], -1)
            x = double(net, f"up.{index}", x)
        return net.conv("head", x), net.moved

    return run


def double(net, name, x):
    x = jax.nn.relu(net.batch_norm(f"{name}.1", net.conv(f"{name}.0", x, 1, 1)))
    return jax.nn.relu(net.batch_norm(f"{name}.4", net.conv(f"{name}.3", x, 1, 1)))
