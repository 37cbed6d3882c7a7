"""Torch's update rules as optax transformations, where optax's own of that name do something else."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ScaleByTorchAmsgradState(NamedTuple):
    """Steps, both moments, and the largest second moment so far."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any
    nu_max: Any


class ScaleByTorchAdagradState(NamedTuple):
    """Steps, and the sums of squares."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum_of_squares: Any


class DampenedTraceState(NamedTuple):
    """Steps, and the momentum buffers."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: Any


def scale_by_torch_amsgrad(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """AMSGrad with the largest of the uncorrected second moments, as in `torch.optim.Adam(amsgrad=True)`."""

    def init(params: Any) -> ScaleByTorchAmsgradState:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(3)]
        return ScaleByTorchAmsgradState(jnp.zeros([], jnp.int32), *zeros)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        most = jax.tree.map(jnp.maximum, state.nu_max, nu)
        first, second = 1 - b1**count, jnp.sqrt(1 - b2**count)
        moves = jax.tree.map(
            lambda m, v: (m / first.astype(m.dtype)) / (jnp.sqrt(v) / second.astype(v.dtype) + eps), mu, most
        )
        return moves, ScaleByTorchAmsgradState(count, mu, nu, most)

    return optax.GradientTransformation(init, update)


def scale_by_torch_adagrad(decay: float, initial: float, eps: float) -> optax.GradientTransformation:
    """Adagrad with `eps` beside the root and rates that decay, as in `torch.optim.Adagrad`."""

    def init(params: Any) -> ScaleByTorchAdagradState:
        sums = jax.tree.map(lambda p: jnp.full_like(p, initial), params)
        return ScaleByTorchAdagradState(jnp.zeros([], jnp.int32), sums)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        sums = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        slower = 1 + state.count * decay
        moves = jax.tree.map(lambda s, g: g / (jnp.sqrt(s) + eps) / jnp.asarray(slower, g.dtype), sums, updates)
        return moves, ScaleByTorchAdagradState(state.count + 1, sums)

    return optax.GradientTransformation(init, update)


def dampened_trace(decay: float, dampening: float, nesterov: bool) -> optax.GradientTransformation:
    """Momentum whose gradients are dampened but for the first, as in `torch.optim.SGD(dampening=...)`."""

    def init(params: Any) -> DampenedTraceState:
        return DampenedTraceState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        share = jnp.where(state.count == 0, 1.0, 1.0 - dampening)
        trace = jax.tree.map(lambda t, g: decay * t + share.astype(g.dtype) * g, state.trace, updates)
        moves = jax.tree.map(lambda t, g: g + decay * t, trace, updates) if nesterov else trace
        return moves, DampenedTraceState(state.count + 1, trace)

    return optax.GradientTransformation(init, update)
