"""What training and measuring cost, in floating-point operations: counted on jaxprs, nothing is compiled or run.

A count is of what really runs. The compiled step holds a branch for each layer with kernels and one for the isolation
pass, and `flops` takes a branch's dearest side; so a pass is counted on the model with the kernels that it computes:
all kernels of a layer, if one of them is on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from esper.errors import SeedError
from esper.growth.credit import BatchLoss, paired_losses
from esper.growth.moments import Tap
from esper.growth.optimizer import Optimizer
from esper.growth.recovery import recovered
from esper.growth.statistics import examples_of
from esper.jax_backend.flops import flops
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import Kernel, Structure
from esper.lifecycle import BLENDED
from esper.lifecycle import SeedLifecycleState as S

Place = tuple[str, int]
"""A layer's name, and which of its seeds."""

TrainingLoss = Callable[[MorphableModel, Any, jax.Array], tuple[jax.Array, MorphableModel]]
"""From a model, a batch and a key to the loss of a training step and the model with its buffers moved on."""

Shapes = tuple[tuple[tuple[int, ...], Any], ...]


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of one training step.

    Attributes:
        host: Forward and backward of the host alone.
        kernels: What the kernels that are blended in add, those that lie in their layers switched off included.
        isolation: The shadow pass; 0 unless a seed is TRAINING.
        optimizer: The optimiser, and setting failing kernels aside.
        live: `kernels` divided among the kernels that are blended in, in proportion to their forwards.
        training: `isolation` divided evenly among the TRAINING kernels that it serves.
    """

    host: int
    kernels: int
    isolation: int
    optimizer: int
    live: tuple[tuple[Place, int], ...] = ()
    training: tuple[tuple[Place, int], ...] = ()

    @property
    def total(self) -> int:
        """All of it."""
        return self.host + self.kernels + self.isolation + self.optimizer


def places(model: MorphableModel) -> tuple[frozenset[Place], frozenset[Place]]:
    """The kernels that are blended in, at whatever alpha, and those that are TRAINING; waits for the device."""
    states = np.asarray(model.seeds.lifecycle)
    of = {(k.layer, k.seed): states[model.structure.row(k.layer), k.seed] for k in model.structure.kernels}
    live = frozenset(place for place, state in of.items() if state in BLENDED)
    return live, frozenset(place for place, state in of.items() if state == S.TRAINING)


def step_flops(
    loss: TrainingLoss,
    model: MorphableModel,
    batch: Any,
    tx: Optimizer,
    *,
    live: Collection[Place],
    training: Collection[Place],
    race: int = 1,
) -> StepCost:
    """What a training step costs; counted once for each structure, sets of kernels and shapes.

    Args:
        loss: A training step's loss, hashable.
        model: The model, of which only the structure and shapes count.
        batch: A batch, likewise.
        tx: The optimiser.
        live: Kernels that are blended in (GRAFTING, ACTIVE or FOSSILIZED).
        training: Kernels that are TRAINING.
        race: How many TRAINING kernels train alone at a time, as in `isolated_loss`.

    Raises:
        SeedError: One of those seeds holds no kernel.
    """
    _check_held(model.structure, {*live, *training})
    return _step(loss, tx, *_abstract((model.replace(taps={}), batch)), frozenset(live), frozenset(training), race)


def evaluation_flops(
    loss: Callable[[MorphableModel, Any], Any], model: MorphableModel, batches: Any, *, live: Collection[Place]
) -> int:
    """What `loss` of every batch costs, without gradients.

    Args:
        loss: From a model and a batch to anything, hashable.
        model: The model.
        batches: A pytree of arrays with leading axes [batches, examples].
        live: Kernels that are blended in.
    """
    _check_held(model.structure, live)
    return _leading(batches) * _call(loss, *_abstract((_computed(model, live), _one(batches))))


def gain_flops(loss: BatchLoss, model: MorphableModel, batches: Any) -> int:
    """What `credit` of one kernel costs: every batch with and without it, all kernels of the model computed."""
    return _call(partial(_paired, loss), *_abstract((model, batches)))


def statistics_flops(
    loss: BatchLoss, model: MorphableModel, batches: Any, *, layers: Sequence[str], live: Collection[Place]
) -> int:
    """What `layer_statistics` of some layers costs."""
    _check_held(model.structure, live)
    examples, sites = examples_of(batches), model.structure.sites
    taps = {name: Tap.on(sites[model.structure.row(name)], examples) for name in layers}
    looking = _computed(model, live).replace(taps=taps)
    return _leading(batches) * _call(partial(_moments, loss), *_abstract((looking, _one(batches))))


@lru_cache(maxsize=256)
def _step(
    loss: TrainingLoss,
    tx: Optimizer,
    form: Any,
    shapes: Shapes,
    live: frozenset[Place],
    training: frozenset[Place],
    race: int,
) -> StepCost:
    model, batch = _rebuilt(form, shapes)
    host = _pass(loss, *_abstract((_only(model, ()), batch)))
    with_live = _pass(loss, *_abstract((_computed(model, live), batch))) if live else host
    isolation, served = 0, [place for place in _held(model.structure) if place in training]
    if training:
        arms = min(race, len(model.structure.kernels))
        served = served if race == 1 else served[:arms]
        isolation = flops(partial(_shadow, loss, arms), _computed(model, live | training), batch, _key())
    forwards = [_forward(model, kernel) for kernel in model.structure.kernels if (kernel.layer, kernel.seed) in live]
    return StepCost(
        host=host,
        kernels=with_live - host,
        isolation=isolation,
        optimizer=flops(partial(_finish, tx), model, model.params, jax.eval_shape(tx.init, model.params)),
        live=_shared(with_live - host, [place for place in _held(model.structure) if place in live], forwards),
        training=_shared(isolation, served, [1] * len(served)),
    )


@lru_cache(maxsize=256)
def _pass(loss: TrainingLoss, form: Any, shapes: Shapes) -> int:
    return flops(partial(_gradient, loss), *_rebuilt(form, shapes), _key())


def _call(function: Callable[..., Any], form: Any, shapes: Shapes) -> int:
    if isinstance(function, partial):  # equal partials are not equal, but what they hold is
        return _counted(function.func, function.args, form, shapes)
    return _counted(function, (), form, shapes)


@lru_cache(maxsize=256)
def _counted(function: Callable[..., Any], given: tuple[Any, ...], form: Any, shapes: Shapes) -> int:
    return flops(partial(function, *given), *_rebuilt(form, shapes))


def _gradient(loss: TrainingLoss, model: MorphableModel, batch: Any, key: jax.Array) -> Any:
    return jax.value_and_grad(lambda params: loss(model.replace(params=params), batch, key), has_aux=True)(model.params)


def _shadow(loss: TrainingLoss, arms: int, model: MorphableModel, batch: Any, key: jax.Array) -> Any:
    """The pass that `isolated_loss` adds while a seed is TRAINING."""

    def value(params: dict[str, Any]) -> jax.Array:
        whole = model.replace(params=params)
        if arms == 1:
            return loss(whole.shadow(), batch, key)[0]
        alone = jnp.zeros((arms, *model.seeds.lifecycle.shape), bool)
        return jax.vmap(lambda only: loss(whole.shadow(only), batch, key)[0])(alone).sum()

    return jax.value_and_grad(value)(model.params)


def _finish(tx: Optimizer, model: MorphableModel, grads: Any, opt_state: Any) -> Any:
    """What a step does with its gradients."""
    model, grads = recovered(model, grads)
    updates, opt_state = tx.update(grads, opt_state, model.params)
    return optax.apply_updates(model.params, updates), opt_state


def _paired(loss: BatchLoss, model: MorphableModel, batches: Any) -> Any:
    return paired_losses(loss, model, batches, np.int32(0), np.int32(0), np.float32(1))


def _moments(loss: BatchLoss, model: MorphableModel, batch: Any) -> Any:
    def value(moments: dict[str, Any]) -> jax.Array:
        taps = {name: tap.replace(moments=moments[name]) for name, tap in model.taps.items()}
        return loss(model.replace(taps=taps), batch)

    return jax.grad(value)({name: tap.moments for name, tap in model.taps.items()})


def _forward(model: MorphableModel, kernel: Kernel) -> int:
    one = jax.ShapeDtypeStruct(*model.structure.site(kernel.layer).fed(kernel.placement))
    params = model.params["kernels"][kernel.layer][kernel.seed]
    return flops(partial(kernel_output, kernel.source, train=False), params, one)


def _computed(model: MorphableModel, on: Iterable[Place]) -> MorphableModel:
    """The model with the kernels that are computed while these are on."""
    layers = {layer for layer, _ in on}
    return _only(model, {place for place in _held(model.structure) if place[0] in layers})


def _only(model: MorphableModel, keep: Collection[Place]) -> MorphableModel:
    """The model with these kernels and no others."""
    kernels = tuple(k for k in model.structure.kernels if (k.layer, k.seed) in keep)
    held: dict[str, dict[int, Any]] = {}
    for kernel in kernels:
        held.setdefault(kernel.layer, {})[kernel.seed] = model.params["kernels"][kernel.layer][kernel.seed]
    return model.replace(
        params={**model.params, "kernels": held}, structure=replace(model.structure, kernels=kernels), taps={}
    )


def _held(structure: Structure) -> list[Place]:
    return [(kernel.layer, kernel.seed) for kernel in structure.kernels]


def _check_held(structure: Structure, wanted: Iterable[Place]) -> None:
    missing = sorted(set(wanted) - set(_held(structure)))
    if missing:
        layer, seed = missing[0]
        raise SeedError(
            f"layer {layer!r}, seed {seed} holds no kernel whose work could be counted; `places(model)` says which do"
        )


def _shared(total: int, among: Sequence[Place], weights: Sequence[int]) -> tuple[tuple[Place, int], ...]:
    """Whole numbers in proportion to the weights that add up to `total`."""
    whole, shares, given = max(1, sum(weights)), [], 0
    for place, upto in zip(among, np.cumsum(weights, dtype=object), strict=True):
        shares.append((place, total * int(upto) // whole - given))
        given += shares[-1][1]
    return tuple(shares)


def _abstract(tree: Any) -> tuple[Any, Shapes]:
    """Structure and shapes of a tree, hashable."""
    leaves, form = jax.tree.flatten(tree)
    return form, tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves)


def _rebuilt(form: Any, shapes: Shapes) -> Any:
    return jax.tree.unflatten(form, [jax.ShapeDtypeStruct(*shape) for shape in shapes])


def _one(batches: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)


def _leading(batches: Any) -> int:
    return jax.tree.leaves(batches)[0].shape[0]


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
