"""The product of rows with a weight, and the weight's gradient by the faster of two orders."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from esper.jax_backend.linear import linear
from esper.jax_backend.platform.fence import fenced
from esper.jax_backend.platform.precision import contract


@jax.custom_jvp
def product(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """(n, inputs) times (outputs, inputs), over the inputs; left in the accumulator's dtype."""
    return contract(rows, weight, ((1,), (1,)))


@partial(product.defjvp, symbolic_zeros=True)
def _product_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
    (rows, weight), (rows_dot, weight_dot) = primals, tangents
    out = product(rows, weight)
    moved: Any = SymbolicZero.from_primal_value(out)
    if not isinstance(rows_dot, SymbolicZero):  # that of a network's input would cost a product of its own
        moved = product(rows_dot, weight)
    if not isinstance(weight_dot, SymbolicZero):
        by_weight = linear(product, _of_weight, rows, weight_dot)
        moved = by_weight if isinstance(moved, SymbolicZero) else moved + by_weight
    return out, moved


def _of_weight(rows: jax.Array, cotangent: jax.Array) -> jax.Array:
    return weight_gradient(cotangent, rows.astype(cotangent.dtype)).astype(rows.dtype)


def weight_gradient(cotangent: jax.Array, rows: jax.Array) -> jax.Array:
    """(n, outputs) times (n, inputs), over n: (outputs, inputs), in the accumulator's dtype."""
    count, outputs = cotangent.shape
    if isinstance(count, int) and isinstance(outputs, int) and count >= _FEW and outputs <= 2 * count:
        return contract(_turned(cotangent), rows, ((1,), (0,)))
    return contract(cotangent, rows, ((0,), (0,)))


# Not fenced, XLA's CPU would make it a product of two transposed factors again, for which it has no fast one: that is
# slower, but where the copy that is turned is as large as the result and more.
_turned = fenced(jnp.transpose)
_FEW = 512
