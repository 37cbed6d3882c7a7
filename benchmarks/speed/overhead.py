"""What it costs to call a compiled program with a thousand arrays in a wrapped model, and in a plain dict."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn

import esper
from benchmarks.speed.contenders.contender import timed
from benchmarks.speed.results import Overhead

LEAVES, TURNS, PER_TURN = 1000, 20, 10


class Many(nn.Module):
    """Very many parameters that do very little."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales[0]


def measured(leaves: int = LEAVES, turns: int = TURNS) -> Overhead:
    """Calls take all leaves and give them back, donated, as a train step does."""
    model = esper.wrap(Many(leaves), target_layers=[])
    plain = {name: jnp.ones(()) for name in model.params["host"]}
    x = jnp.ones(4)
    calls = {
        "wrapped model": _handed(jax.jit(lambda model, x: (model, model(x)), donate_argnums=0), model, x),
        "plain dict": _handed(jax.jit(lambda leaves, x: (leaves, x * leaves["scales.0"]), donate_argnums=0), plain, x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            seconds[name] += [timed(call)[1] for _ in range(1 + PER_TURN)][1:]
    return Overhead(leaves, {name: 1e6 * statistics.median(spent) for name, spent in seconds.items()})


def _handed(function: Any, held: Any, x: jax.Array):
    def call() -> None:
        nonlocal held
        held, y = function(held, x)
        jax.block_until_ready((held, y))

    return call
