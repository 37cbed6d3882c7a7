"""Convolutions over one axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed.tuned.products import times

MANY = 16
"""From so many channels on, XLA's own convolution is faster than a product with windows."""


def conv(x: jax.Array, weight: jax.Array, stride: int, padding: int, dilation: int) -> jax.Array:
    """(batch, length, in) with weights (size, in, out)."""
    if x.shape[2] < MANY:
        windows = _windows(x, weight.shape[0], stride, padding, dilation)
        return times(windows, weight.reshape(-1, weight.shape[2]).T)
    return lax.conv_general_dilated(
        x,
        weight,
        (stride,),
        [(padding, padding)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )


def _windows(x: jax.Array, size: int, stride: int, padding: int, dilation: int) -> jax.Array:
    """(batch, results, size * in)."""
    padded = jnp.pad(x, ((0, 0), (padding, padding), (0, 0)))
    results = (padded.shape[1] - dilation * (size - 1) - 1) // stride + 1
    span = stride * (results - 1) + 1
    starts = [dilation * tap for tap in range(size)]
    taps = [lax.slice_in_dim(padded, start, start + span, stride, axis=1) for start in starts]
    return jnp.concatenate(taps, -1)
