"""In which precision products are summed: torch's, on every backend. The only place for that decision."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# A float32 product is a true float32 product; TPUs and recent GPUs would otherwise use fewer bits.
PRECISION = lax.Precision.HIGHEST
_NARROW = (jnp.bfloat16, jnp.float16)


def accumulator(dtype: np.dtype) -> np.dtype:
    """The dtype in which sums of `dtype` are taken: float32 for 16-bit floats, else `dtype` itself."""
    return jnp.dtype(jnp.float32) if dtype in _NARROW else jnp.dtype(dtype)


def widen(x: jax.Array) -> jax.Array:
    """`x` in the dtype its sums are taken in."""
    return x.astype(accumulator(x.dtype))


def contract(
    a: jax.Array,
    b: jax.Array,
    over: tuple[Sequence[int], Sequence[int]],
    batch: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> jax.Array:
    """`lax.dot_general`, the result left in the accumulator's dtype."""
    return lax.dot_general(a, b, (over, batch), precision=PRECISION, preferred_element_type=accumulator(a.dtype))
