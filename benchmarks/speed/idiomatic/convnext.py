"""ConvNeXt."""

from __future__ import annotations

from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depths = [len(stage) for stage in module.stages]

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x = x.transpose(0, 2, 3, 1)
        for stage, depth in enumerate(depths):
            x = reduction(net, stage, x)
            for index in range(depth):
                x = block(net, f"stages.{stage}.{index}", x)
        return net.dense("head", net.layer_norm("norm", jnp.mean(x, (1, 2)), 1e-6)), net.moved

    return run


def reduction(net, stage, x):
    name = f"reductions.{stage}"
    if not stage:
        return net.layer_norm(f"{name}.1", net.conv(f"{name}.0", x, 4), 1e-6)
    return net.conv(f"{name}.1", net.layer_norm(f"{name}.0", x, 1e-6), 2)


def block(net, name, x):
    out = net.layer_norm(f"{name}.norm", net.conv(f"{name}.depthwise", x, 1, 3, groups=x.shape[-1]), 1e-6)
    out = net.dense(f"{name}.reduce", net.gelu(net.dense(f"{name}.expand", out)))
    return x + net.params[f"{name}.scale"] * out
