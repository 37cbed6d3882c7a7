"""From a running model to what a policy sees: the only place of the loop that waits for the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from esper.growth.cost import Cost, kernel_cost
from esper.growth.credit import BatchLoss, Gain, credit
from esper.growth.policy import MEASURED, Asks, LayerView, Place, Plan, SeedView
from esper.growth.scores import FirstOrder, first_order_gains
from esper.growth.shapley import shapley
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState


@dataclass(frozen=True)
class Measurements:
    """What was measured for a policy.

    Attributes:
        gains: Held-out gain of a kernel, all else as it is.
        credits: Share of a kernel in what several gain together.
        scores: First-order gain of a layer.
    """

    gains: Mapping[Place, Gain] = field(default_factory=dict)
    credits: Mapping[Place, Gain] = field(default_factory=dict)
    scores: Mapping[str, FirstOrder] = field(default_factory=dict)

    def figures(self) -> dict[str, float | int | str]:
        """All of it by name, for a record."""
        found: dict[str, float | int | str] = {}
        for kind, measured in (("gain", self.gains), ("credit", self.credits)):
            for (layer, seed), value in measured.items():
                found |= {f"{kind} {layer}[{seed}]": value.mean, f"{kind} stderr {layer}[{seed}]": value.stderr}
        return found | {f"score {layer}": score.gain for layer, score in self.scores.items()}


def growing(model: MorphableModel, *, fossilised: bool = False) -> tuple[Place, ...]:
    """The kernels that train, blend or are on trial; those that are permanent too, if asked."""
    states = (*MEASURED, SeedLifecycleState.FOSSILIZED) if fossilised else MEASURED
    held = np.asarray(model.seeds.lifecycle)
    kernels = model.structure.kernels
    return tuple((k.layer, k.seed) for k in kernels if held[model.structure.row(k.layer), k.seed] in states)


def gains(loss: BatchLoss, model: MorphableModel, batches: Any, seeds: Iterable[Place]) -> dict[Place, Gain]:
    """Held-out gain of each of these kernels, all else as it is; one compile for all of a structure."""
    return {(layer, seed): credit(loss, model, batches, layer=layer, seed=seed) for layer, seed in seeds}


def measured(
    loss: BatchLoss, model: MorphableModel, batches: Any, asks: Asks, *, rank: int, key: jax.Array | None = None
) -> Measurements:
    """What a policy asks for, and nothing else.

    Args:
        loss: A module-level function or another that hashes.
        model: The model.
        batches: Held-out data, leading axes [batches, examples].
        asks: What to measure.
        rank: Of the first-order gains.
        key: For the credits of more than 4 kernels.
    """
    return Measurements(
        gains=gains(loss, model, batches, asks.gains),
        credits=shapley(loss, model, batches, asks.credits, key=key),
        scores=first_order_gains(loss, model, batches, layers=asks.scores, rank=rank) if asks.scores else {},
    )


def observed(
    model: MorphableModel,
    pulls: np.ndarray,
    planned: Mapping[str, Sequence[Plan]],
    found: Measurements | None = None,
    *,
    arriving: Mapping[Place, Plan] | None = None,
) -> tuple[LayerView, ...]:
    """Every layer as a policy sees it.

    Args:
        model: The model.
        pulls: Gradient norm of each layer.
        planned: What each layer could grow by.
        found: What was measured now; `with_measurements` puts it in later.
        arriving: What is to germinate where, decided and not yet done: shown as LOADING.
    """
    arriving = arriving or {}
    seeds = jax.device_get(model.seeds)
    kernels = {(kernel.layer, kernel.seed): kernel for kernel in model.structure.kernels}
    held = {place: kernel_cost(model, kernel) for place, kernel in kernels.items()}
    costs: dict[Place, Cost | Plan] = {**held, **arriving}
    named = {**kernels, **arriving}

    def view(row: int, layer: str, seed: int) -> SeedView:
        place = (layer, seed)
        cost = costs.get(place, Cost(0, 0, 0))
        state = SeedLifecycleState(int(seeds.lifecycle[row, seed]))
        return SeedView(
            layer=layer,
            seed=seed,
            state=SeedLifecycleState.LOADING if place in arriving else state,
            since=int(seeds.age[row, seed] - seeds.last_update[row, seed]),
            alpha=float(seeds.alpha[row, seed]),
            parameters=cost.parameters,
            flops=cost.flops,
            bytes=cost.bytes,
            errors=int(seeds.error_count[row, seed]),
            blueprint=named[place].blueprint if place in named else "",
        )

    layers = tuple(
        LayerView(
            name=site.name,
            kind=site.kind,
            pull=float(pulls[row]),
            seeds=tuple(view(row, site.name, seed) for seed in range(model.structure.seeds_per_layer)),
            plans=tuple(planned.get(site.name, ())),
        )
        for row, site in enumerate(model.structure.sites)
    )
    return with_measurements(layers, found) if found else layers


def with_measurements(layers: tuple[LayerView, ...], found: Measurements) -> tuple[LayerView, ...]:
    """The same views, with what was measured."""
    return tuple(
        replace(
            layer,
            score=found.scores.get(layer.name),
            seeds=tuple(
                replace(seed, gain=found.gains.get(seed.place), credit=found.credits.get(seed.place))
                for seed in layer.seeds
            ),
        )
        for layer in layers
    )


def with_health(model: MorphableModel, found: Mapping[Place, Gain]) -> MorphableModel:
    """The model with the gains noted as the seeds' health."""
    for (layer, seed), gain in found.items():
        row = model.structure.row(layer)
        model = model.replace(seeds=model.seeds.set(row, seed, health=gain.mean))
    return model
