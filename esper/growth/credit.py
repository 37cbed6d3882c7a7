"""Counterfactual credit: what the held-out loss would be with and without one seed, all else equal.

With and without differ in data only (the seed's state and alpha), so both are one vmapped evaluation, and
one compile serves every seed of a structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from esper.jax_backend.devices import fetched
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState

BatchLoss = Callable[[MorphableModel, Any], jax.Array]
"""From a model and a batch to the batch's mean loss; nothing may depend on more than these two."""


@dataclass(frozen=True)
class Gain:
    """What having a kernel is worth on held-out data.

    Attributes:
        mean: Mean over batches of (loss without it - loss with it); positive is good.
        stderr: Standard error of that mean; NaN for a single batch.
        without: Mean loss without it.
        having: Mean loss with it.
        batches: How many batches were compared.
    """

    mean: float
    stderr: float
    without: float
    having: float
    batches: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.stderr:.4f}"


def credit(loss: BatchLoss, model: MorphableModel, batches: Any, *, layer: str, seed: int, alpha: float = 1.0) -> Gain:
    """The held-out gain of a seed's kernel: on at `alpha`, against off.

    Args:
        loss: A module-level function, so that the compiled comparison is found again.
        model: A model whose seed holds a kernel, in any state; its other seeds stay as they are.
        batches: A pytree of arrays with leading axes [batches, examples].
        layer: Name of the layer.
        seed: Which of its seeds.
        alpha: Weight of the kernel when it is on.
    """
    row = model.structure.row(layer)
    found = paired_losses(loss, model, batches, np.int32(row), np.int32(seed), np.float32(alpha))
    without, having = np.asarray(fetched(found), np.float64)
    return gain(without, having)


def gain(without: np.ndarray, having: np.ndarray) -> Gain:
    """The gain from two rows of per-batch losses over the same batches."""
    saved = without - having
    stderr = float(saved.std(ddof=1) / math.sqrt(len(saved))) if len(saved) > 1 else math.nan
    return Gain(float(saved.mean()), stderr, float(without.mean()), float(having.mean()), len(saved))


@partial(jax.jit, static_argnums=0)
def paired_losses(
    loss: BatchLoss, model: MorphableModel, batches: Any, row: Any, seed: Any, alpha: Any
) -> Float[Array, "2 batches"]:
    """Per-batch losses without (first row) and with (second row) the kernel."""
    states = jnp.asarray([SeedLifecycleState.CULLED, SeedLifecycleState.ACTIVE], jnp.uint8)
    alphas = jnp.stack([jnp.float32(0), jnp.asarray(alpha, jnp.float32)])

    def on_batch(batch: Any) -> jax.Array:
        def arm(state: jax.Array, alpha: jax.Array) -> jax.Array:
            seeds = model.seeds.set(row, seed, lifecycle=state, alpha=alpha)
            return loss(model.replace(seeds=seeds), batch)

        return jax.vmap(arm)(states, alphas)

    return jax.lax.map(on_batch, batches).T
