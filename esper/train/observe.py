"""From a running model to what a policy sees: the only place of the loop that waits for the device."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from esper.growth.cost import Cost, kernel_cost
from esper.growth.credit import Gain, credit
from esper.growth.policy import LayerView, Plan, SeedView
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import Kernel
from esper.lifecycle import SeedLifecycleState
from esper.train.data import Split
from esper.train.step import credit_loss

_MEASURED = (SeedLifecycleState.TRAINING, SeedLifecycleState.GRAFTING, SeedLifecycleState.ACTIVE)


def gains(model: MorphableModel, batches: Split, *, every: bool = False) -> dict[tuple[str, int], Gain]:
    """Held-out gain by (layer, seed) of the kernels that grow; of every kernel that is not CULLED, if asked."""
    return {
        (kernel.layer, kernel.seed): credit(credit_loss, model, batches, layer=kernel.layer, seed=kernel.seed)
        for kernel in model.structure.kernels
        if _state(model, kernel) in _MEASURED or (every and _state(model, kernel) is SeedLifecycleState.FOSSILIZED)
    }


def observed(
    model: MorphableModel,
    pulls: np.ndarray,
    planned: Mapping[str, Plan],
    found: Mapping[tuple[str, int], Gain],
) -> tuple[LayerView, ...]:
    """Every layer as a policy sees it.

    Args:
        model: The model.
        pulls: Gradient norm of each layer.
        planned: What each layer would grow by.
        found: Gains measured now.
    """
    seeds = jax.device_get(model.seeds)
    costs = {(kernel.layer, kernel.seed): kernel_cost(model, kernel) for kernel in model.structure.kernels}

    def view(row: int, layer: str, seed: int) -> SeedView:
        held = costs.get((layer, seed), Cost(0, 0, 0))
        return SeedView(
            layer=layer,
            seed=seed,
            state=SeedLifecycleState(int(seeds.lifecycle[row, seed])),
            since=int(seeds.age[row, seed] - seeds.last_update[row, seed]),
            alpha=float(seeds.alpha[row, seed]),
            parameters=held.parameters,
            flops=held.flops,
            bytes=held.bytes,
            errors=int(seeds.error_count[row, seed]),
            gain=found.get((layer, seed)),
        )

    return tuple(
        LayerView(
            name=site.name,
            kind=site.kind,
            pull=float(pulls[row]),
            seeds=tuple(view(row, site.name, seed) for seed in range(model.structure.seeds_per_layer)),
            plan=planned.get(site.name),
        )
        for row, site in enumerate(model.structure.sites)
    )


def with_health(model: MorphableModel, found: Mapping[tuple[str, int], Gain]) -> MorphableModel:
    """The model with the gains noted as the seeds' health."""
    for (layer, seed), gain in found.items():
        row = model.structure.row(layer)
        model = model.replace(seeds=model.seeds.set(row, seed, health=gain.mean))
    return model


def _state(model: MorphableModel, kernel: Kernel) -> SeedLifecycleState:
    return SeedLifecycleState(int(model.seeds.lifecycle[model.structure.row(kernel.layer), kernel.seed]))
