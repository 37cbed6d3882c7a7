"""The product of rows with a weight, and the weight's gradient by the faster of two orders."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

from esper.jax_backend.linear import linear
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
    outputs, inputs = cotangent.shape[1], rows.shape[1]
    if not (isinstance(outputs, int) and isinstance(inputs, int) and outputs > inputs):
        return contract(cotangent, rows, ((0,), (0,)))
    # XLA's CPU copies the first factor of such a product: the narrower one, and turns the small result round. It would
    # undo that, but for the barriers; the second has it turned before other loops read it.
    turned = lax.optimization_barrier(contract(rows, cotangent, ((0,), (0,))))
    return lax.optimization_barrier(turned.T)
