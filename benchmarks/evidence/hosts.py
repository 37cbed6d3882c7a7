"""Hosts, and how they begin: one wrapped module for a shape, initial values from a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import esper
from esper import SeedLifecycleState as S
from esper.jax_backend.model import MorphableModel


@dataclass(frozen=True)
class Mlp:
    """Makes an MLP of ReLU layers of these widths."""

    widths: tuple[int, ...]

    def __call__(self) -> nn.Module:
        """The module, with torch's own initial values."""
        layers: list[nn.Module] = []
        for inputs, outputs in zip(self.widths[:-1], self.widths[1:], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Host:
    """A network that can grow in one layer.

    Attributes:
        build: Makes the module.
        layer: The layer with seeds; "" is the module as a whole.
        seeds: How many.
        frozen: Whether its own parameters stay as they are.
    """

    build: Mlp
    layer: str
    seeds: int = 3
    frozen: bool = False


@dataclass(frozen=True)
class Graft:
    """A kernel that is there from the first step."""

    blueprint: str
    options: tuple[tuple[str, Any], ...] = ()


def born(host: Host, key: int, grafts: Sequence[Graft] = ()) -> MorphableModel:
    """A wrapped host with torch's own initial values, and kernels that take part from the start.

    The output weights of such kernels are drawn as torch draws a linear layer's: zero is for what joins a network that
    has learned already. Models of one host share their structure, and with it the compiled programs.
    """
    model = _template(host, tuple(grafts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)
        state = host.build().state_dict()
    params = {**model.params, "host": {name: jnp.array(state[name].numpy()) for name in model.params["host"]}}
    root = jax.random.key(key)
    kernels = {
        layer: {
            seed: _drawn(tree, jax.random.fold_in(root, number)) for number, (seed, tree) in enumerate(held.items())
        }
        for layer, held in params["kernels"].items()
    }
    return model.replace(params={**params, "kernels": kernels})


def extended(host: Host, trained: MorphableModel, grafts: Sequence[Graft] = ()) -> MorphableModel:
    """A frozen host with the values of one that was trained; kernels take part from the start, and give nothing yet."""
    model = _template(replace(host, frozen=True), tuple(grafts))
    return model.replace(buffers={**model.buffers, **trained.params["host"]})


@lru_cache(maxsize=64)
def _template(host: Host, grafts: tuple[Graft, ...]) -> MorphableModel:
    model = esper.wrap(
        host.build().requires_grad_(not host.frozen),
        example_inputs=torch.zeros(2, host.build.widths[0]),
        target_layers=[host.layer],
        seeds_per_layer=max(host.seeds, len(grafts)),
    )
    for seed, graft in enumerate(grafts):
        place = {"layer": host.layer, "seed": seed}
        key = jax.random.key(0)
        model, _ = esper.germinate(
            model, None, blueprint=graft.blueprint, options=dict(graft.options), key=key, **place
        )
        for state in (S.GRAFTING, S.ACTIVE, S.FOSSILIZED):
            model = esper.transition(model, to=state, **place)
        row = model.structure.row(host.layer)
        model = model.replace(seeds=model.seeds.set(row, seed, alpha=1.0))
    return model


def _drawn(params: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """A kernel's parameters as torch's linear layers and convolutions have them."""
    drawn = {}
    for number, (name, array) in enumerate(params.items()):
        weight = params[name.rpartition(".")[0] + ".weight"]
        bound = 1 / np.sqrt(weight[0].size)
        drawn[name] = jax.random.uniform(jax.random.fold_in(key, number), array.shape, array.dtype, -bound, bound)
    return drawn


def count(model: MorphableModel) -> int:
    """How many parameters there are, frozen ones included."""
    return sum(leaf.size for leaf in jax.tree.leaves((model.params, model.buffers)))
