"""What each of several kernels is worth when they work together: Shapley values over held-out batches.

The gain of one kernel, all others as they are, counts what two kernels do in common to neither of them, or to both.
A Shapley value is the mean of what a kernel adds over all orders of switching the kernels on: values sum to the
gain of all together, equal kernels have equal values, and one that changes nothing has 0 (Shapley 1953).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import permutations as orders_of
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from esper.errors import ArgumentError
from esper.growth.credit import BatchLoss, Gain
from esper.jax_backend.devices import fetched
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState

EXACT = 4
"""Up to so many kernels, every order is looked at."""

_ARMS = 16  # coalitions in one vmapped evaluation; more would only take more memory


def shapley(
    loss: BatchLoss,
    model: MorphableModel,
    batches: Any,
    seeds: Sequence[tuple[str, int]],
    *,
    key: jax.Array | None = None,
    permutations: int = 64,
) -> dict[tuple[str, int], Gain]:
    """Each kernel's share of what all of them gain together.

    Exact for up to 4 kernels, all 2^n coalitions in one vmapped evaluation. For more, orders are drawn in pairs, each
    with its reverse (antithetic), and the coalitions that they pass through are evaluated in vmapped lots of 16.

    Args:
        loss: A module-level function, so that the compiled evaluation is found again.
        model: A model whose `seeds` hold kernels, in any state; its other seeds stay as they are.
        batches: A pytree of arrays with leading axes [batches, examples].
        seeds: The kernels; on at alpha 1.
        key: What orders are drawn from; needed for more than 4.
        permutations: How many orders are drawn, an even number.

    Returns:
        {seed: its value}. `having` is the loss with all of them, `without` that plus the value. The standard error is
        that over batches; where orders were drawn, their standard error is in it.

    Raises:
        ArgumentError: The same seed twice, no key where one is needed, or an odd number of orders or below 4.

    Example:
        >>> found = shapley(loss, model, batches, [("0", 0), ("2", 0)])  # doctest: +SKIP
        >>> found["0", 0].mean, found["0", 0].stderr  # doctest: +SKIP
    """
    if len(set(seeds)) != len(seeds):
        raise ArgumentError(f"every seed is to be named once, and these are {list(seeds)}")
    if not seeds:
        return {}
    exact = len(seeds) <= EXACT
    orders = np.asarray(list(orders_of(range(len(seeds))))) if exact else _drawn(len(seeds), permutations, key)
    added, having = _added(loss, model, batches, list(seeds), orders)
    values = added.mean(axis=1)
    errors = [math.nan if len(value) < 2 else value.std(ddof=1) / math.sqrt(len(value)) for value in values]
    if not exact:
        pairs = added.mean(axis=-1).reshape(len(seeds), -1, 2).mean(axis=-1)
        errors = np.hypot(errors, pairs.std(axis=-1, ddof=1) / math.sqrt(pairs.shape[-1]))
    return {
        seed: Gain(float(value.mean()), float(error), float(having + value.mean()), float(having), len(value))
        for seed, value, error in zip(seeds, values, errors, strict=True)
    }


def _drawn(players: int, permutations: int, key: jax.Array | None) -> Int[np.ndarray, "orders players"]:
    """Orders, each followed by its reverse."""
    if key is None:
        raise ArgumentError(f"the orders of {players} kernels are drawn: give a key")
    if permutations < 4 or permutations % 2:
        raise ArgumentError(f"an even number of orders is drawn, at least 4, not {permutations}")
    entropy = np.asarray(jax.random.bits(key, (2,), jnp.uint32))
    draw = np.random.default_rng(entropy)
    forth = np.stack([draw.permutation(players) for _ in range(permutations // 2)])
    return np.stack([forth, forth[:, ::-1]], axis=1).reshape(permutations, players)


def _added(
    loss: BatchLoss, model: MorphableModel, batches: Any, seeds: list[tuple[str, int]], orders: np.ndarray
) -> tuple[Float[np.ndarray, "players orders batches"], float]:
    """What each kernel takes off the loss at its turn in each order; and the loss with all of them."""
    on = np.zeros((len(orders), len(seeds) + 1, len(seeds)), bool)
    for turn in range(len(seeds)):
        on[:, turn + 1 :, :] |= (np.arange(len(seeds)) == orders[:, turn, None])[:, None, :]
    coalitions, which = np.unique(on.reshape(-1, len(seeds)), axis=0, return_inverse=True)
    losses = _evaluated(loss, model, batches, seeds, coalitions)
    path = losses[which.reshape(on.shape[:2])]
    saved = path[:, :-1] - path[:, 1:]
    added = np.zeros((len(seeds), *saved.shape[::2]))
    for order, turns in enumerate(orders):
        added[turns, order] = saved[order]
    return added, float(losses[-1].mean())


def _evaluated(
    loss: BatchLoss, model: MorphableModel, batches: Any, seeds: list[tuple[str, int]], on: Bool[np.ndarray, "arms n"]
) -> Float[np.ndarray, "arms batches"]:
    rows = np.asarray([model.structure.row(layer) for layer, _ in seeds])
    places = np.asarray([seed for _, seed in seeds])
    held = jax.device_get(model.seeds)
    lifecycle, alpha = (np.repeat(field[None], len(on), axis=0) for field in (held.lifecycle, held.alpha))
    lifecycle[:, rows, places] = np.where(on, int(SeedLifecycleState.ACTIVE), int(SeedLifecycleState.CULLED))
    alpha[:, rows, places] = on
    lots = min(len(on), _ARMS)
    padding = -len(on) % lots
    # The last lot is filled up with the first coalitions, so that all lots are one program.
    lifecycle, alpha = (np.concatenate([field, field[:padding]]) for field in (lifecycle, alpha))
    found = [
        coalition_losses(loss, model, batches, lifecycle[start : start + lots], alpha[start : start + lots])
        for start in range(0, len(lifecycle), lots)
    ]
    return np.concatenate([np.asarray(fetched(lot), np.float64) for lot in found])[: len(on)]


@partial(jax.jit, static_argnums=0)
def coalition_losses(
    loss: BatchLoss,
    model: MorphableModel,
    batches: Any,
    lifecycle: UInt8[Array, "arms layers seeds"],
    alpha: Float32[Array, "arms layers seeds"],
) -> Float[Array, "arms batches"]:
    """Per-batch losses of a model whose seeds are as each arm says."""

    def on_batch(batch: Any) -> jax.Array:
        def arm(lifecycle: jax.Array, alpha: jax.Array) -> jax.Array:
            return loss(model.replace(seeds=model.seeds.replace(lifecycle=lifecycle, alpha=alpha)), batch)

        return jax.vmap(arm)(lifecycle, alpha)

    return jax.lax.map(on_batch, batches).T
