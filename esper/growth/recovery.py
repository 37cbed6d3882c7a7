"""What becomes of a kernel that fails, decided inside the compiled step: no host sync, no compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from esper.jax_backend.model import MorphableModel
from esper.jax_backend.seeds import SeedState
from esper.jax_backend.source import Structure
from esper.lifecycle import SeedLifecycleState as S

_RECOVERABLE = (S.TRAINING, S.GRAFTING, S.ACTIVE)


def recovered(model: MorphableModel, grads: dict[str, Any]) -> tuple[MorphableModel, dict[str, Any]]:
    """The model with failing kernels in ERROR_RECOVERY, and gradients without theirs.

    A kernel fails when its output or its gradient is not finite: either shows as a gradient of its own parameters
    that is not finite, while the layer's output and the host's gradients are those without it. Its alpha is 0 from
    now on and the error is counted. A FOSSILIZED kernel is part of the network: it fails as a layer would.

    Args:
        model: The model after the forward of a training step.
        grads: Gradients like `model.params`, before the optimiser sees them.
    """
    if not model.structure.kernels:
        return model, grads
    trained = jnp.stack([model.seeds.lifecycle == int(known) for known in _RECOVERABLE]).any()
    seeds, kernels = jax.lax.cond(
        trained, _judged(model.structure), lambda seeds, kernels: (seeds, kernels), model.seeds, grads["kernels"]
    )
    return model.replace(seeds=seeds), {**grads, "kernels": kernels}


def _judged(structure: Structure) -> Callable[[SeedState, Any], tuple[SeedState, Any]]:
    """Every kernel's state and gradients by whether they are finite."""

    def judge(seeds: SeedState, grads: Any) -> tuple[SeedState, Any]:
        kernels: dict[str, dict[int, Any]] = {}
        for kernel in structure.kernels:
            row, place = structure.row(kernel.layer), kernel.seed
            own = grads[kernel.layer][place]
            state = seeds.lifecycle[row, place]
            trained = jnp.stack([state == int(known) for known in _RECOVERABLE]).any()
            failed = trained & ~jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(own)]).all()
            cleared = jax.tree.map(lambda leaf, failed=failed: jnp.where(failed, jnp.zeros_like(leaf), leaf), own)
            kernels.setdefault(kernel.layer, {})[place] = cleared
            seeds = seeds.set(
                row,
                place,
                lifecycle=jnp.where(failed, jnp.uint8(S.ERROR_RECOVERY), state),
                alpha=jnp.where(failed, jnp.float32(0), seeds.alpha[row, place]),
                last_update=jnp.where(failed, seeds.age[row, place], seeds.last_update[row, place]),
                error_count=seeds.error_count[row, place] + failed,
            )
        return seeds, kernels

    return judge
