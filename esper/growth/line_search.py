"""A line search over the scale of a fitted kernel's output, on data it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from esper.errors import ArgumentError
from esper.growth.birth import DoNotGerminate, Init, Initialised, Outcome, Params, Report
from esper.growth.credit import BatchLoss, Gain, gain
from esper.growth.forms import two_layers
from esper.jax_backend.devices import fetched
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.slots import with_kernel
from esper.jax_backend.source import Kernel
from esper.lifecycle import SeedLifecycleState

SCALES = (0.0, *(2.0**power for power in range(-4, 9)))


@dataclass(frozen=True, eq=False)
class Trial:
    """What a kernel is fitted to, and what tells whether it helps.

    Attributes:
        loss: A module-level function from a model and a batch to the batch's mean loss.
        model: The model that the kernel is for.
        fit: A pytree of arrays with leading axes [batches, examples], to gather statistics from.
        check: The like, of other data, at least two batches.
        scales: What the kernel's output is tried at; 0 is always tried.
        errors: By how many standard errors (over batches) a scale must beat 0.
    """

    loss: BatchLoss
    model: MorphableModel
    fit: Any
    check: Any
    scales: tuple[float, ...] = SCALES
    errors: float = 2.0


def line_searched(init: Init, trial: Trial) -> Init:
    """`init` with its output at the scale that is best on `trial.check`, or not at all."""

    def searched(drawn: Params, kernel: Kernel, key: jax.Array) -> Outcome:
        outcome = init(drawn, kernel, key)
        if isinstance(outcome, DoNotGerminate):
            return outcome
        made = outcome if isinstance(outcome, Initialised) else Initialised(outcome)
        scale, found = search(trial, kernel, made.params)
        report = replace(made.report or Report("given"), scale=scale, check=found)
        if scale == 0:
            return DoNotGerminate(report)
        names = two_layers(kernel, drawn).last
        return Initialised(_scaled(made.params, names, scale), replace(report, gain=report.gain * scale))

    return searched


def search(trial: Trial, kernel: Kernel, params: Params) -> tuple[float, Gain]:
    """The best scale of the kernel's output, 0 unless another is clearly better, and its gain over 0.

    Raises:
        ArgumentError: One batch, which says nothing about chance.
    """
    scales = np.asarray([0.0, *(scale for scale in trial.scales if scale)], np.float32)
    tried = with_kernel(trial.model, kernel, params)
    row = tried.structure.row(kernel.layer)
    seeds = tried.seeds.set(row, kernel.seed, lifecycle=int(SeedLifecycleState.ACTIVE), alpha=1.0)
    place = (kernel.layer, kernel.seed, two_layers(kernel, params).last)
    found = fetched(_losses(trial.loss, place, tried.replace(seeds=seeds), trial.check, scales))
    losses = np.asarray(found, np.float64)
    if losses.shape[1] < 2:
        raise ArgumentError("a line search compares batches, and `check` has one; give at least two")
    means = losses.mean(axis=1)
    best = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
    found = gain(losses[0], losses[best])
    return (float(scales[best]) if found.mean > trial.errors * found.stderr else 0.0), found


@partial(jax.jit, static_argnums=(0, 1))
def _losses(
    loss: BatchLoss,
    place: tuple[str, int, tuple[str, ...]],
    model: MorphableModel,
    batches: Any,
    scales: Float[Array, " scales"],
) -> Float[Array, "scales batches"]:
    """All scales in one vmapped evaluation of each batch."""
    layer, seed, names = place
    held = model.params["kernels"]

    def at(scale: jax.Array, batch: Any) -> jax.Array:
        scaled = _scaled(held[layer][seed], names, scale)
        kernels = {**held, layer: {**held[layer], seed: scaled}}
        return loss(model.replace(params={**model.params, "kernels": kernels}), batch)

    return jax.lax.map(lambda batch: jax.vmap(at, (0, None))(scales, batch), batches).T


def _scaled(params: Params, names: tuple[str, ...], scale: Any) -> dict[str, jax.Array]:
    return {
        name: (array * jnp.asarray(scale, jnp.float32)).astype(array.dtype) if name in names else array
        for name, array in params.items()
    }
