"""How every arm learns: the optimiser, its schedule, the order of the examples, and what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.evidence.signals import Split
from esper.jax_backend.model import MorphableModel

RATES = (3e-3, 1e-2, 3e-2, 6e-2)
"""The learning rates every arm is swept over."""


@dataclass(frozen=True)
class Schooling:
    """How an arm learns.

    Attributes:
        steps: Training steps; the learning rate falls to 0 over them, along half a cosine.
        batch: Examples a step.
        decay: AdamW's weight decay.
        warmup: Steps over which the learning rate rises first.
    """

    steps: int
    batch: int = 100
    decay: float = 1e-2
    warmup: int = 0

    def optimizer(self, rate: float | jax.Array) -> optax.GradientTransformation:
        """AdamW with its schedule."""

        def falling(count: Any) -> Any:
            rise = jnp.minimum((count + 1) / self.warmup, 1.0) if self.warmup else 1.0
            return rate * rise * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / self.steps, 1.0)))

        return optax.adamw(falling, weight_decay=self.decay)


@lru_cache(maxsize=64)
def optimizer(schooling: Schooling, rate: float) -> optax.GradientTransformation:
    """Equal arguments, the same object: steps that are compiled for it are found again."""
    return schooling.optimizer(rate)


def batch_table(key: jax.Array, examples: int, batch: int, steps: int) -> jax.Array:
    """Which examples each step sees: epochs without replacement, one after the other; a remainder is left out."""
    each = examples // batch
    orders = jax.vmap(lambda own: jax.random.permutation(own, examples))(jax.random.split(key, -(-steps // each)))
    return orders[:, : each * batch].reshape(-1, batch)[:steps]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Loss of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@jax.jit
def measured(model: MorphableModel, split: Split) -> tuple[jax.Array, jax.Array]:
    """Mean loss, and accuracy in percent."""
    logits = model(split.inputs)
    return cross_entropy(logits, split.labels).mean(), 100 * (logits.argmax(-1) == split.labels).mean()
