"""Kernels in a layer, one after the other in order of seed, by select: exact when nothing is live.

A kernel that is not live must leave no trace, in the forward or in the backward, even when it is full of
NaN: multiplying by 0 would not do (0 * NaN), nor would a `where` alone (its gradient is 0 * NaN for the
kernel's input). So a kernel is differentiated by a rule of its own, which selects on both sides. The same
rule keeps a live kernel that fails from the host: what is not finite stays out of the layer's output and
out of the host's gradient, and shows as NaN in the gradient of the kernel's own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.blending import joined
from esper.jax_backend.finite import finite_cotangent

Branch = Callable[[Any, jax.Array, jax.Array, jax.Array | None], jax.Array]
"""A kernel as a function of its parameters and the layer's (output, input, key)."""


def blend(
    host: jax.Array,
    input: jax.Array,
    branches: Sequence[Branch],
    params: Sequence[Any],
    blends: Sequence[str],
    blended: jax.Array,
    live: jax.Array,
    permanent: jax.Array,
    alpha: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """The layer's output with its kernels.

    Args:
        host: The layer's own output.
        input: The layer's input.
        branches: The kernels.
        params: Their parameters.
        blends: How each joins, a name of `esper.blending`.
        blended: Whether each is to be computed, shape [kernels]: the same in all arms of a `vmap` over alphas.
        live: Whether each takes part, shape [kernels]; only those that are blended do.
        permanent: Whether each is part of the network for good: what it gives then counts whatever it is.
        alpha: Weight of each, shape [kernels].
        key: For kernels that draw.

    Returns:
        An array like `host`; exactly `host` where nothing is live, or nothing that is finite. Dead kernels are not
        computed unless another kernel of the same layer is blended (one branch for each layer, not for each kernel).
    """
    alpha = lax.stop_gradient(alpha)

    def grown(host: jax.Array, input: jax.Array, params: Sequence[Any]) -> jax.Array:
        output = host
        for place, branch in enumerate(branches):
            made, sound = _run(branch, live[place], permanent[place], params[place], host, input, key)
            weight = alpha[place].astype(host.dtype)
            output = jnp.where(sound, joined(blends[place], output, weight, made.astype(host.dtype)), output)
        return output

    made = lax.cond(jnp.any(blended), grown, lambda host, *_: jnp.zeros_like(host), host, input, params)
    # The select reads `host` where it lies: what follows sums in the order it has without kernels, to the last bit.
    return jnp.where(jnp.any(live), made, host)


def _run(
    branch: Branch,
    live: jax.Array,
    permanent: jax.Array,
    params: Any,
    host: jax.Array,
    input: jax.Array,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """What a kernel gives, 0 unless it is sound, and whether it is: live, and all of it finite."""

    def is_sound(live: jax.Array, permanent: jax.Array, made: jax.Array) -> jax.Array:
        return live & (permanent | jnp.isfinite(made).all())

    @jax.custom_jvp
    def run(
        live: jax.Array, permanent: jax.Array, params: Any, host: jax.Array, input: jax.Array, key: Any
    ) -> tuple[jax.Array, jax.Array]:
        made = branch(params, host, input, key)
        sound = is_sound(live, permanent, made)
        # The select is part of the function: under `vmap` what it gives is batched wherever its derivative is.
        return jnp.where(sound, made, jnp.zeros_like(made)), sound

    @run.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        live, permanent, params, host, input, key = primals
        made, derivative = jax.linearize(lambda p, h, i: branch(p, h, i, key), params, host, input)
        sound = is_sound(live, permanent, made)
        failing = jnp.where(live & ~sound, jnp.nan, 1.0)  # a NaN that the selects let through to the kernel alone

        def own(tangent: jax.Array) -> jax.Array:
            return jnp.where(live, tangent * failing.astype(tangent.dtype), 0)

        def fed(tangent: jax.Array) -> jax.Array:
            return jnp.where(sound, jnp.where(permanent, tangent, finite_cotangent(tangent)), 0)

        given: Any = (_map(own, tangents[2]), *_map(fed, tangents[3:5]))
        kept, change = (jnp.where(sound, of, jnp.zeros_like(of)) for of in (made, derivative(*given)))
        return (kept, sound), (change, np.zeros(sound.shape, jax.dtypes.float0))

    return run(live, permanent, params, host, input, key)


def _map(change: Callable[[jax.Array], jax.Array], tangents: Any) -> Any:
    """`change` of every tangent but those of whole numbers, which have none."""
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == jax.dtypes.float0 else change(leaf), tangents)
