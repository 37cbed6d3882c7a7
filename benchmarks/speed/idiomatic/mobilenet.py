"""MobileNets."""

from __future__ import annotations

from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    convs = [layer[0] for layer in module.features]
    sizes = [(conv.stride[0], conv.padding[0], conv.groups) for conv in convs]

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x = x.transpose(0, 2, 3, 1)
        for index, (stride, padding, groups) in enumerate(sizes):
            x = net.conv(f"features.{index}.0", x, stride, padding, groups)
            x = jnp.clip(net.batch_norm(f"features.{index}.1", x), 0, 6)
        return net.dense("head", jnp.mean(x, (1, 2))), net.moved

    return run
