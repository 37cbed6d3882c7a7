"""What it costs to call a compiled program with a thousand arrays in a wrapped model, and in a plain dict."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn

import esper
from benchmarks.speed.contenders.contender import timed
from benchmarks.speed.costs import Overhead

LEAVES, TURNS, PER_TURN = 1000, 20, 10


class Many(nn.Module):
    """Very many parameters that do very little."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales[0]


def measured(leaves: int = LEAVES, turns: int = TURNS) -> Overhead:
    """Calls take all leaves; those of the first kind give them back, donated, as a train step does."""
    model = esper.wrap(Many(leaves), target_layers=[])
    plain = {name: jnp.ones(()) for name in model.params["host"]}
    x = jnp.ones(4)
    read_model = jax.jit(lambda model, x: model(x), keep_unused=True)
    read_plain = jax.jit(lambda leaves, x: x * leaves["scales.0"], keep_unused=True)
    reading = {
        "wrapped model": lambda: read_model(model, x),
        "plain dict": lambda: read_plain(plain, x),
        "wrapped model, called outside of `jax.jit`": lambda: model(x),
    }
    moving = {
        "wrapped model": _handed(jax.jit(lambda model, x: (model, model(x)), donate_argnums=0), model, x),
        "plain dict": _handed(jax.jit(lambda leaves, x: (leaves, x * leaves["scales.0"]), donate_argnums=0), plain, x),
    }
    read = _medians(reading, turns)  # first: what is moved is gone
    return Overhead(leaves, _medians(moving, turns), read)


def _medians(calls: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Microseconds of each call, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            seconds[name] += [timed(_awaited, call)[1] for _ in range(1 + PER_TURN)][1:]
    return {name: 1e6 * statistics.median(spent) for name, spent in seconds.items()}


def _awaited(call: Callable[[], Any]) -> None:
    jax.block_until_ready(call())


def _handed(function: Any, held: Any, x: jax.Array) -> Callable[[], Any]:
    def call() -> Any:
        nonlocal held
        held, y = function(held, x)
        return held, y

    return call
