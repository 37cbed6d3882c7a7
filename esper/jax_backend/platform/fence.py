"""Computations that XLA compiles by themselves, whatever surrounds them.

XLA's CPU compiler drops `optimization_barrier` before it fuses. What is fused with what then depends on all that reads
a value, and with it how multiplications and additions are joined and in which order sums are added up. A function that
is called and not inlined is fused only with itself: it is equal, bit for bit, wherever it stands, and what it returns
is in memory, in order, when it is read. It costs a pass over memory where it could have been fused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata


def fenced(function: Callable[..., Any], static: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`function`, of arrays, traced once for equal shapes and never inlined.

    Args:
        function: What to fence.
        static: The places of arguments that are no arrays, and hashable.
    """

    @wraps(function)
    def inside(*args: Any) -> Any:
        with set_xla_metadata(inlineable=None):  # the mark is for the call, not for what is in it
            return function(*args)

    compiled = jax.jit(inside, static_argnums=static)

    @wraps(function)
    def call(*args: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call


@partial(fenced, static=(1,))
def transposed(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x` with its dimensions in another order, in memory.

    For what several loops read: each would otherwise bring it into that order for itself.
    """
    return jnp.transpose(x, axes)


@fenced
def turned(x: jax.Array) -> jax.Array:
    """`x` with its last two dimensions changing places, in memory.

    For a product's factor that is summed over its rows: XLA would make it a product of two transposed factors
    otherwise, for which its CPU has no fast way.
    """
    return jnp.swapaxes(x, -1, -2)
