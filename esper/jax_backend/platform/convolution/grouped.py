"""Grouped convolutions as one convolution for each group: XLA's own are slow, and their gradients very slow."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from esper.jax_backend.platform.convolution.spec import Spec


def by_group(formulation: Callable[..., jax.Array], cut: tuple[int, int], joined: int) -> Callable[..., jax.Array]:
    """`formulation` of each group: its operands cut along these axes, what it makes joined along that."""

    def run(a: jax.Array, b: jax.Array, *, spec: Spec) -> jax.Array:
        one = spec._replace(groups=1)
        parts = zip(jnp.split(a, spec.groups, cut[0]), jnp.split(b, spec.groups, cut[1]), strict=True)
        return jnp.concatenate([formulation(*pair, spec=one) for pair in parts], joined)

    return run
