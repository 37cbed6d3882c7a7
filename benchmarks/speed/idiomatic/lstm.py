"""LSTMs: one cell, scanned over time."""

from __future__ import annotations

from benchmarks.speed.idiomatic.layers import Net


def forward(module, layers=Net):
    depth = module.lstm.num_layers

    def run(params, stats, inputs, train):
        net, (x,) = layers(params, stats, train), inputs
        x = x.transpose(1, 0, 2)
        for layer in range(depth):
            x = net.lstm(f"lstm.{{}}_l{layer}", x)
        return net.dense("head", x[-1]), net.moved

    return run
