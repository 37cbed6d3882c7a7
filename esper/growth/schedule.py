"""How alpha moves while a seed is GRAFTING: pure functions of progress, and their use on seed states.

A schedule maps progress in [0, 1] to a share in [0, 1], rising, 0 at 0 and 1 at 1: the share of the way from the
alpha at which the seed began to graft to its target. Up, part of the way, or down again, the ramp is data: it is
read off the seeds' own fields inside the compiled step, so blending costs no compile and no host sync.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from esper.errors import ArgumentError
from esper.jax_backend.seeds import SeedState
from esper.lifecycle import SeedLifecycleState

Schedule = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def linear(progress: Float[Array, "..."]) -> Float[Array, "..."]:
    """Alpha in proportion to progress.

    >>> float(linear(0.25))
    0.25
    """
    return jnp.clip(progress, 0.0, 1.0)


def cosine(progress: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half a cosine: slow at both ends.

    >>> round(float(cosine(0.5)), 6)
    0.5
    """
    # Written as a square, so that 0 and 1 are met exactly.
    return jnp.sin(0.5 * jnp.pi * linear(progress)) ** 2


def sigmoid(progress: Float[Array, "..."]) -> Float[Array, "..."]:
    """A logistic curve from -6 to 6, stretched to meet 0 and 1: slower at both ends than `cosine`.

    >>> float(sigmoid(1.0)), round(float(sigmoid(0.5)), 6)
    (1.0, 0.5)
    """
    low, high = jax.nn.sigmoid(-6.0), jax.nn.sigmoid(6.0)
    return (jax.nn.sigmoid(12.0 * linear(progress) - 6.0) - low) / (high - low)


def instant(progress: Float[Array, "..."]) -> Float[Array, "..."]:
    """All at once, with the first step.

    >>> float(instant(0.0)), float(instant(0.01))
    (0.0, 1.0)
    """
    return jnp.where(jnp.asarray(progress) > 0, 1.0, 0.0)


SCHEDULES: dict[str, Schedule] = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid, "instant": instant}


def schedule(name: str) -> Schedule:
    """The schedule of that name.

    Raises:
        ArgumentError: There is none.
    """
    if name not in SCHEDULES:
        raise ArgumentError(f"no alpha schedule {name!r}; there are: {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def ramped(seeds: SeedState, steps: int | jax.Array, rise: Schedule = linear) -> SeedState:
    """The seeds with the alpha of GRAFTING ones where the schedule has it, all others untouched.

    Args:
        seeds: The state of every seed.
        steps: Training steps from a seed's `origin` to its `target`.
        rise: The schedule.
    """
    grafting = seeds.lifecycle == int(SeedLifecycleState.GRAFTING)
    progress = (seeds.age - seeds.last_update) / jnp.maximum(steps, 1)
    share = rise(progress).astype(jnp.float32)
    alpha = jnp.where(progress >= 1, seeds.target, seeds.origin + (seeds.target - seeds.origin) * share)
    return seeds.replace(alpha=jnp.where(grafting, alpha, seeds.alpha))
