"""One process of several, or one alone; `tests/test_shard.py` starts it: number, count, address, where to write."""

import sys

import jax
import numpy as np
import optax
import pytest


def main(number, count, address, out):
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, count, number)
    found = {}
    for what in (train, fit, carry):
        found |= {f"{what.__name__} {name}": value for name, value in what(number, count).items()}
    if count > 1:
        refuse(number)
    if number == 0:
        np.savez(out, **found)


def split(model, count, axes=(4,), names=("data",)):
    """The model on all devices of all processes; one process alone leaves it on one."""
    import esper
    from esper.sharding import fsdp

    return esper.shard(model, jax.make_mesh(axes, names), fsdp("data", min_elements=64)) if count > 1 else model


def train(number, count):
    """Growth in mid-run, every process with its own part of each batch."""
    from sharded.cases import BATCH, grown, wrapped

    from esper.sharding import place_local_batch

    def part(batch, model):
        share = BATCH // count
        own = tuple(array[number * share : (number + 1) * share] for array in batch)
        return place_local_batch(own, model) if count > 1 else own

    model, _, losses = grown(split(wrapped("mlp"), count), "mlp", optax.sgd(0.05, momentum=0.9), feed=part)
    return {"losses": losses, **tensors(model)}


def fit(number, count):
    """Every process with all the data."""
    from sharded.cases import fitted

    from esper.growth.credit import Gain

    result = fitted(lambda model: split(model, count))
    gains: list[Gain] = list(result.gains.values())
    return {"losses": result.losses, "gains": [gain.mean for gain in gains], **tensors(result.model)}


def carry(number, count):
    """A kernel out of one model and into another, tensors in and out."""
    import torch
    from sharded.cases import wrapped

    import esper

    model = split(wrapped("mlp"), count)
    options = {"width": 64}
    how = {"layer": "2", "blueprint": "mlp", "options": options, "key": jax.random.key(1)}
    model, _ = esper.germinate(model, None, **how)
    held = model.params["kernels"]["2"][0]
    assert count == 1 or not held["0.weight"].is_fully_addressable
    assert count == 1 or {shard.data.shape for shard in held["0.weight"].addressable_shards} == {(16, 32)}
    model, _, artifact = esper.unload_kernel(model, None, layer="2")
    model = esper.transition(model, layer="2", to=esper.SeedLifecycleState.DORMANT)
    model, _ = esper.load_kernel(model, None, layer="2", artifact=artifact)
    output = model(torch.ones(4, 8))
    digest = int(artifact.digest.removeprefix("sha256:")[:8], 16)
    return {"digest": digest, "output": output.numpy(), "states": np.asarray(model.seeds.lifecycle)}


def refuse(number):
    """What differs between processes is met before it does harm."""
    import torch
    from sharded.cases import MODELS, fitted

    import esper
    from esper.errors import ArgumentError, ShardingError

    torch.manual_seed(number)
    with pytest.raises(ShardingError, match=r"the processes wrapped different values of 0\.bias"):
        split(esper.wrap(MODELS["mlp"]()), 2)
    with pytest.raises(ArgumentError, match="swap='ready'"):
        fitted(lambda model: split(model, 2), growth=esper.configs.TamiyoSettings(swap="ready"))


def tensors(model):
    import esper

    return {name: tensor.numpy() for name, tensor in esper.unwrap(model).state_dict().items()}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
