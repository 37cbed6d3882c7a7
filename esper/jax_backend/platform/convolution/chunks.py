"""The weight gradient of a convolution with large maps: products over a part of the outputs at a time.

Patches repeat every input as often as there are taps. A part of them stays in the processor's cache, and its
memory serves the next part again; all of them at once cost more to write than to multiply.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.convolution import products
from esper.jax_backend.platform.convolution.patches import padded
from esper.jax_backend.platform.convolution.spec import Spec

_PATCHES = 1 << 19  # elements; two megabytes of float32
_WIDE = 16  # channels, from which on pieces of patches are long


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Cotangents times patches, summed over parts of the batch and of the first spatial dimension."""
    inputs, outputs, batch = x.shape[-1], cotangent.shape[-1], x.shape[0]
    images, rows = parts(spec, batch, inputs)
    across = spec.results[0] // rows
    tall = (rows - 1) * spec.stride[0] + spec.reach[0] + 1
    x = padded(x, spec)
    part = spec._replace(space=(tall, *x.shape[2:-1]), pads=((0, 0),) * spec.rank)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        start, row = (i // across) * images, (i % across) * rows
        seen = _part(x, start, images, row * spec.stride[0], tall)
        given = _part(cotangent, start, images, row, rows)
        return total + products.gradient_matrix(seen, given, spec=part, by_tap=inputs >= _WIDE)

    behind = inputs // spec.groups * math.prod(spec.kernel)
    zeros = jnp.zeros((spec.groups, outputs // spec.groups, behind), x.dtype)
    matrix = lax.fori_loop(0, batch // images * across, add, zeros)
    return products.in_order(matrix, images, part)


def parts(spec: Spec, batch: int, inputs: int) -> tuple[int, int]:
    """How many images and rows of outputs are taken at a time."""
    row = math.prod(spec.results[1:]) * math.prod(spec.kernel) * inputs
    rows = _divisor(spec.results[0], _PATCHES // row)
    return _divisor(batch, _PATCHES // (row * rows)) if rows == spec.results[0] else 1, rows


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most so large, or 1."""
    return next((n for n in range(min(most, number), 1, -1) if number % n == 0), 1)


def _part(x: jax.Array, image: Any, images: int, row: Any, rows: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(x, image, images), row, rows, axis=1)
