"""Residual networks."""

from __future__ import annotations

import jax
from jax import numpy as jnp

from benchmarks.speed.idiomatic.layers import Net
from benchmarks.speed.models.resnet import Bottleneck


def forward(module, layers=Net):
    depths = [len(stage) for stage in module.stages]
    block = bottleneck if isinstance(module.stages[0][0], Bottleneck) else basic
    imagenet = module.conv.stride[0] == 2

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x = x.transpose(0, 2, 3, 1)
        x = net.conv("conv", x, 2, 3) if imagenet else net.conv("conv", x, 1, 1)
        x = jax.nn.relu(net.batch_norm("bn", x))
        x = net.max_pool(x, 3, 2, 1) if imagenet else x
        for stage, depth in enumerate(depths):
            for index in range(depth):
                x = block(net, f"stages.{stage}.{index}", x, 2 if stage and not index else 1)
        return net.dense("head", jnp.mean(x, (1, 2))), net.moved

    return run


def basic(net, name, x, stride):
    out = jax.nn.relu(net.batch_norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, stride, 1)))
    out = net.batch_norm(f"{name}.bn2", net.conv(f"{name}.conv2", out, 1, 1))
    return jax.nn.relu(out + shortcut(net, name, x, stride))


def bottleneck(net, name, x, stride):
    out = jax.nn.relu(net.batch_norm(f"{name}.bn1", net.conv(f"{name}.conv1", x)))
    out = jax.nn.relu(net.batch_norm(f"{name}.bn2", net.conv(f"{name}.conv2", out, stride, 1)))
    out = net.batch_norm(f"{name}.bn3", net.conv(f"{name}.conv3", out))
    return jax.nn.relu(out + shortcut(net, name, x, stride))


def shortcut(net, name, x, stride):
    if f"{name}.shortcut.0.weight" not in net.params:
        return x
    return net.batch_norm(f"{name}.shortcut.1", net.conv(f"{name}.shortcut.0", x, stride))
