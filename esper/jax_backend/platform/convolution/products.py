"""Convolutions as products of matrices, all outputs of a batch at once: patches times weights, channels last.

Groups, if any, are the batch of the product. Patches or weights have to be brought into the other's order, taps
or channels last: whichever there are fewer of.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from esper.jax_backend.platform.convolution.patches import gather, scatter
from esper.jax_backend.platform.convolution.spec import Spec
from esper.jax_backend.platform.fence import transposed, turned
from esper.jax_backend.platform.precision import contract

_MANY = 512  # outputs, from which on it pays to turn their cotangents


def convolve(x: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """Patches times weights."""
    taps_last = _fewer_patches(x.shape[0], weight.shape[0], spec)
    patches = _rows(gather(_apart(x, spec.groups), spec, taps_last), spec.groups)
    matrix = _matrix(weight if taps_last else jnp.moveaxis(weight, 1, -1), spec.groups)
    out = _multiply(patches, matrix, (2, 2))
    return _together(out.reshape(-1, *spec.results, out.shape[-1]), spec.groups)


def input_gradient(cotangent: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """The gradients of all patches, added up."""
    rows = _rows(_apart(cotangent, spec.groups), spec.groups)
    patches = _multiply(rows, _matrix(weight, spec.groups), (2, 1))
    patches = patches.reshape(-1, *spec.results, weight.shape[1], math.prod(spec.kernel))
    return _together(scatter(patches, spec), spec.groups)


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Cotangents times patches."""
    return in_order(gradient_matrix(x, cotangent, spec=spec), x.shape[0], spec)


def gradient_matrix(x: jax.Array, cotangent: jax.Array, *, spec: Spec, by_tap: bool = False) -> jax.Array:
    """The gradient in the weight, (groups, outputs of one, what is behind one); `by_tap` as for `gather`."""
    taps_last = _fewer_patches(x.shape[0], cotangent.shape[-1], spec)
    patches = _rows(gather(_apart(x, spec.groups), spec, taps_last, by_tap), spec.groups)
    rows = _rows(_apart(cotangent, spec.groups), spec.groups)
    return _multiply(turned(rows), patches, (2, 1)) if _turns(rows, patches) else _multiply(rows, patches, (1, 1))


def in_order(matrix: jax.Array, batch: Any, spec: Spec) -> jax.Array:
    """A `gradient_matrix`, of so many images, as torch has the weight."""
    outputs, inputs = matrix.shape[0] * matrix.shape[1], matrix.shape[2] // math.prod(spec.kernel)
    if _fewer_patches(batch, outputs, spec):
        return matrix.reshape(outputs, inputs, *spec.kernel)
    # An optimiser's loops read it, and those of its parameter are in torch's order.
    last = spec.rank + 1
    return transposed(matrix.reshape(outputs, *spec.kernel, inputs), (0, last, *range(1, last)))


def _fewer_patches(batch: Any, outputs: int, spec: Spec) -> bool:
    count = batch * math.prod(spec.results)
    return isinstance(count, int) and count < outputs // spec.groups


def _apart(x: jax.Array, groups: int) -> jax.Array:
    """(groups * batch, *space, channels of a group)."""
    if groups == 1:
        return x
    x = jnp.moveaxis(x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups), -2, 0)
    return x.reshape(groups * x.shape[1], *x.shape[2:])


def _together(x: jax.Array, groups: int) -> jax.Array:
    if groups == 1:
        return x
    x = jnp.moveaxis(x.reshape(groups, x.shape[0] // groups, *x.shape[1:]), 0, -2)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _rows(x: jax.Array, groups: int) -> jax.Array:
    """(groups, outputs, what is behind one)."""
    return x.reshape(groups, math.prod(x.shape[:-1]) // groups, x.shape[-1])


def _matrix(weight: jax.Array, groups: int) -> jax.Array:
    """(groups, channels of a group's output, what is behind one)."""
    return weight.reshape(groups, weight.shape[0] // groups, math.prod(weight.shape[1:]))


def _turns(rows: jax.Array, patches: jax.Array) -> bool:
    """Whether it pays to turn the cotangents round first."""
    count, outputs = rows.shape[1:]
    return isinstance(count, int) and count >= _MANY and outputs <= patches.shape[-1]


def _multiply(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Of each group the product over the axes given."""
    if a.shape[0] == 1:
        return contract(a[0], b[0], ((over[0] - 1,), (over[1] - 1,)))[None]
    return contract(a, b, ((over[0],), (over[1],)), ((0,), (0,)))
