"""What is exact about growth, on hosts of several kinds: birth, death, and the host beside a kernel that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import esper
from benchmarks.evidence.gpt import CONTEXT, GPT
from esper.errors import SeedError
from esper.growth.optimizer import per_kernel
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState
from esper.torch_frontend.blueprints.registry import names_for
from esper.torch_frontend.hosts import SmallCNN
from esper.train.objective import Objective, objective
from esper.train.step import Learner, TrainState, train_step

Batch = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Host:
    """A network and a batch for it.

    Attributes:
        name: For the report.
        model: With seeds at the layers named.
        batch: Inputs and labels.
    """

    name: str
    model: MorphableModel
    batch: Batch


@dataclass(frozen=True)
class Birth:
    """What one germination did to a host's outputs, as it began and as it ended.

    Attributes:
        place: Host and layer.
        blueprint: The recipe.
        blend: How the kernel would have joined.
        change: Largest absolute change of an output by germination.
        culled: Whether the outputs after a cull have the bits of those before, the kernel being full of noise by then.
    """

    place: str
    blueprint: str
    blend: str
    change: float
    culled: bool


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of a host's parameters and buffers.

    Attributes:
        name: The host.
        blueprint: What trained beside it.
        steps: For how many steps.
        before: Before the isolation phase with the host frozen.
        frozen: After it.
        alone: After as many steps of the host training without a seed.
        beside: After as many steps with a TRAINING seed.
    """

    name: str
    blueprint: str
    steps: int
    before: str
    frozen: str
    alone: str
    beside: str


def hosts() -> Iterator[Host]:
    """An MLP with dropout, a CNN with batch normalisation, a transformer."""
    draw = np.random.default_rng(0)

    def wrapped(module: nn.Module, inputs: np.ndarray, layers: Any) -> MorphableModel:
        return esper.wrap(module, target_layers=layers, example_inputs=(torch.as_tensor(inputs),))

    def labels(*shape: int, classes: int) -> jax.Array:
        return jnp.asarray(draw.integers(0, classes, shape), jnp.int32)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = draw.normal(size=(32, 20)).astype(np.float32)
        mlp = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 5))
        yield Host("MLP", wrapped(mlp, rows, None), (jnp.asarray(rows), labels(32, classes=5)))
        images = draw.normal(size=(16, 1, 18, 18)).astype(np.float32)
        cnn = wrapped(SmallCNN((1, 18, 18), 5, 4), images, ["conv2", "norm2", "head"])
        yield Host("CNN", cnn, (jnp.asarray(images), labels(16, classes=5)))
        text = draw.integers(0, 30, (4, CONTEXT))
        places = ["embed", "blocks.0", "blocks.0.feed", "blocks.0.attention.mix", "norm"]
        gpt = wrapped(GPT(30, hidden=32), text, places)
        yield Host("GPT", gpt, (jnp.asarray(text, jnp.int32), labels(4, CONTEXT, classes=30)))


def births() -> Iterator[Birth]:
    """Every blueprint that fits, beside every layer with a seed; the blends by turns."""
    blends = ("add", "lerp", "multiply", "gate")
    turn = 0
    for host in hosts():
        for site in host.model.structure.sites:
            for blueprint in names_for(site.kind):
                turn += 1
                found = _birth(host, site.name, blueprint, blends[turn % 4] if turn % 2 else "add")
                if found:
                    yield found


def _birth(host: Host, layer: str, blueprint: str, blend: str) -> Birth | None:
    """None where the recipe does not fit the layer, or the blend would not be the identity at birth."""
    inputs = host.batch[0]
    before = np.asarray(host.model(inputs))
    try:
        born, _ = esper.germinate(
            host.model, None, layer=layer, blueprint=blueprint, key=jax.random.key(1), blend=blend
        )
    except SeedError:
        return None
    change = float(np.abs(np.asarray(born(inputs)) - before).max())
    noisy = _noisy(born)
    for state in (SeedLifecycleState.GRAFTING, SeedLifecycleState.ACTIVE):
        noisy = esper.transition(noisy, layer=layer, to=state)
    noisy = esper.set_alpha(noisy, layer=layer, alpha=1.0)
    if np.array_equal(np.asarray(noisy(inputs)), before):
        raise AssertionError(f"{host.name} {layer!r}: a kernel full of noise changes nothing, so a cull shows nothing")
    off = np.asarray(esper.transition(noisy, layer=layer, to=SeedLifecycleState.CULLED)(inputs))
    gone = np.asarray(esper.cull(noisy, None, layer=layer)[0](inputs))
    culled = off.tobytes() == before.tobytes() and gone.tobytes() == before.tobytes()
    return Birth(f"{host.name} {layer}", blueprint, blend, change, culled)


def _noisy(model: MorphableModel) -> MorphableModel:
    """The model with every parameter of its kernels drawn anew."""
    leaves, tree = jax.tree.flatten(model.params["kernels"])
    drawn = [
        jax.random.normal(jax.random.fold_in(jax.random.key(2), number), leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return model.replace(params={**model.params, "kernels": jax.tree.unflatten(tree, drawn)})


BESIDE = {"MLP": ("0", "mlp"), "CNN": ("conv2", "conv"), "GPT": ("blocks.0.feed", "gated_mlp")}
"""By host: where a kernel trains, and which."""


def host_hashes(steps: int = 200) -> Iterator[Hashes]:
    """The proof that a host does not notice a seed that trains."""
    learner = Learner(objective("cross_entropy"), per_kernel(optax.adamw(1e-2)), blend_steps=1)
    for host in hosts():
        layer, blueprint = BESIDE[host.name]
        born, _ = esper.germinate(host.model, None, layer=layer, blueprint=blueprint, key=jax.random.key(3))
        frozen = _isolated(learner.objective, born, host.batch, steps)
        trained = [_trained(learner, model, host.batch, steps) for model in (host.model, born)]
        if not _moved(born, frozen) or not _moved(born, trained[1]):
            raise AssertionError(f"{host.name}: the kernel did not train")
        found = (sha256(model) for model in (born, frozen, *trained))
        yield Hashes(host.name, f"{blueprint} at {layer}", steps, *found)


def sha256(model: MorphableModel) -> str:
    """Of the names and bytes of the host's parameters and buffers."""
    digest = hashlib.sha256()
    for name, array in sorted({**model.params["host"], **model.buffers}.items()):
        digest.update(name.encode() + np.asarray(array).tobytes())
    return digest.hexdigest()


def _trained(learner: Learner, model: MorphableModel, batch: Batch, steps: int) -> MorphableModel:
    """After steps of `esper.fit`, host and kernel training."""
    state: TrainState = learner.begin(model, jax.random.key(4))
    for _ in range(steps):
        state = train_step(learner, state, batch)
    return state.model


def _isolated(loss: Objective, model: MorphableModel, batch: Batch, steps: int) -> MorphableModel:
    """After steps on the shadow's loss alone. Host and kernels are in the optimiser's hands, weight decay off."""
    tx = optax.adam(1e-2)

    @jax.jit
    def step(model: MorphableModel, opt_state: Any, key: jax.Array) -> tuple[MorphableModel, Any]:
        def shadow(params: dict[str, Any]) -> jax.Array:
            return loss.training(model.replace(params=params).shadow(), batch, key)[0]

        updates, opt_state = tx.update(jax.grad(shadow)(model.params), opt_state, model.params)
        return model.replace(params=optax.apply_updates(model.params, updates)), opt_state

    opt_state = tx.init(model.params)
    for number in range(steps):
        model, opt_state = step(model, opt_state, jax.random.fold_in(jax.random.key(5), number))
    return model


def _moved(before: MorphableModel, after: MorphableModel) -> bool:
    """Whether every kernel's parameters have changed."""
    pairs = zip(*(jax.tree.leaves(model.params["kernels"]) for model in (before, after)), strict=True)
    return all(not np.array_equal(old, new) for old, new in pairs)
