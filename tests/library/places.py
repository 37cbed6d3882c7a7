"""Kernels to put into a library, and hosts to load them into."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import esper
from esper.jax_backend.artifact import KernelArtifact
from esper.lifecycle import SeedLifecycleState as State

X = jnp.cos(jnp.arange(12.0)).reshape(4, 3)


def artifact(number=0, *, blueprint="mlp", inputs=3, outputs=5, dtype="float32", size=4, **more):
    """A kernel of some numbers: another for every `number`."""
    rng = np.random.default_rng(number)
    given = {
        "blueprint": blueprint,
        "options": (("width", size),),
        "blend": "add",
        "placement": "parallel",
        "kind": "Linear",
        "attributes": (("in_features", inputs), ("out_features", outputs)),
        "dtype": dtype,
        "module": "a module",
        # Put there as they are: forked processes cannot compile.
        "params": jax.device_put({"up": np.float32(rng.normal(size=(size, inputs))), "scale": np.float32(number)}),
    }
    return KernelArtifact(**{**given, **more})


def host(*, seed=0, inputs=3, hidden=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 2))


def wrapped(module=None, **options):
    return esper.wrap(module or host(), **{"seeds_per_layer": 2, "example_inputs": torch.ones(4, 3), **options})


@cache
def donor():
    """A model with a kernel whose every parameter is other than at birth, at work beside layer "0"."""
    grown, _ = esper.germinate(wrapped(), None, layer="0", blueprint="mlp", key=jax.random.key(5))
    arrays = {
        name: array + 0.3 * jnp.sin(1.0 + jnp.arange(array.size)).reshape(array.shape)
        for name, array in grown.params["kernels"]["0"][0].items()
    }
    grown = grown.replace(params={**grown.params, "kernels": {"0": {0: arrays}}})
    return esper.set_alpha(esper.transition(grown, layer="0", to=State.GRAFTING), layer="0", alpha=0.75)
