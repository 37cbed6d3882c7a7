"""Kernels in a layer, one after the other in order of seed, by select: exact when nothing is live.

A kernel that is not live must leave no trace, in the forward or in the backward, even when it is full of
NaN: multiplying by 0 would not do (0 * NaN), nor would a `where` alone (its gradient is 0 * NaN for the
kernel's input). So everything a kernel reads passes a guard whose backward selects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esper.blending import joined

Branch = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""A kernel as a function of the layer's (output, input, key)."""


@jax.custom_jvp
def guard(live: jax.Array, value: jax.Array) -> jax.Array:
    """`value`; its derivative is selected away, not multiplied, when `live` is false, in either mode."""
    return value


@guard.defjvp
def _guard_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    (live, value), (_, tangent) = primals, tangents
    return value, jnp.where(live, tangent, jnp.zeros_like(tangent))


def guarded(live: jax.Array, tree: Any) -> Any:
    """`guard` over every array of a pytree."""
    return jax.tree.map(lambda leaf: guard(live, leaf), tree)


def blend(
    host: jax.Array,
    input: jax.Array,
    branches: Sequence[Branch],
    blends: Sequence[str],
    live: jax.Array,
    alpha: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """The layer's output with its kernels.

    Args:
        host: The layer's own output.
        input: The layer's input.
        branches: The kernels, guarded by the caller as far as their parameters go.
        blends: How each joins, a name of `esper.blending`.
        live: Whether each takes part, shape [kernels].
        alpha: Weight of each, shape [kernels].
        key: For kernels that draw.

    Returns:
        An array like `host`; exactly `host` where nothing is live. Dead kernels are not computed unless
        another kernel of the same layer is live (one branch for each layer, not for each kernel).
    """
    alpha = lax.stop_gradient(alpha)

    def grown(host: jax.Array, input: jax.Array) -> jax.Array:
        output = host
        for place, branch in enumerate(branches):
            on = live[place]
            made = branch(guard(on, host), guard(on, input), key).astype(host.dtype)
            output = jnp.where(on, joined(blends[place], output, alpha[place].astype(host.dtype), made), output)
        return output

    any_live = jnp.any(live)
    made = lax.cond(any_live, grown, lambda host, input: jnp.zeros_like(host), host, input)
    # The select reads `host` where it lies: what follows sums in the order it has without kernels, to the last bit.
    return jnp.where(any_live, made, host)
