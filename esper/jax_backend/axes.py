"""Torch's dimension arguments as JAX axes."""

from __future__ import annotations

from collections.abc import Sequence

import jax


def axis(x: jax.Array, dim: int) -> int:
    """`dim` counted from the front."""
    return dim % max(x.ndim, 1)


def axes(x: jax.Array, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """The axes a reduction runs over: all of them for None and for no dimensions at all."""
    if x.ndim == 0:  # torch takes 0 and -1 for a tensor without dimensions
        return ()
    if dim is None or dim == () or dim == []:
        return tuple(range(x.ndim))
    return tuple(d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim))


def at_least_1d(x: jax.Array) -> jax.Array:
    """`x`, with one dimension if it has none."""
    return x.reshape(1) if x.ndim == 0 else x
