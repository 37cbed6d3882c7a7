"""Normalisation by statistics, its derivative in closed form: it keeps the input and the statistics, nothing else.

Arrays come in a shape in which statistics are taken over whole dimensions, and weight and bias stand at whole
dimensions: (batch, channels, space) for batch norm, (batch, groups, channels of a group, space) for group norm.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.linear import linear
from esper.jax_backend.platform.bias import sums
from esper.jax_backend.platform.fence import fenced
from esper.jax_backend.platform.precision import widen


class Form(NamedTuple):
    """A kind of normalisation.

    Attributes:
        over: The dimensions that statistics are taken over.
        affine: The dimensions of weight and bias.
        eps: What is added to the variance.
        centred: Whether the mean is subtracted; if not, it counts as 0.
        alone: Whether it is compiled by itself (`fence`). Where a layer's parameters are along each row, the loops over
            rows would be fused with what surrounds them, and a host's last bits would depend on what grows beside it.
    """

    over: tuple[int, ...]
    affine: tuple[int, ...]
    eps: float
    centred: bool = True
    alone: bool = False


class _Given(NamedTuple):
    """What the derivative depends on."""

    x: jax.Array
    weight: jax.Array | None
    bias: jax.Array | None
    mean: jax.Array
    rstd: jax.Array


_Moves = tuple[jax.Array, jax.Array | None, jax.Array | None]
_Results = tuple[jax.Array, jax.Array, jax.Array]


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def normalize(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None, form: Form) -> _Results:
    """`(x - mean) / sqrt(variance + eps) * weight + bias`, in the dtype of `x`.

    Args:
        x: The array.
        weight: Of the shape of the dimensions `form.affine` of `x`, and so is `bias`.
        bias: See `weight`.
        form: What stands where.

    Returns:
        The result, mean and (biased) variance, their dimensions kept, in the dtype in which sums are taken.
    """
    return (_normalized_alone if form.alone else _normalized)(x, weight, bias, form)


@normalize.defjvp
def _normalize_jvp(form: Form, primals: _Moves, tangents: _Moves) -> tuple[_Results, Any]:
    out, mean, variance = normalize(*primals, form)
    given = _Given(*primals, mean, lax.rsqrt(variance + form.eps))
    forward, transpose = (_forward_alone, _transpose_alone) if form.alone else (_forward, _transpose)
    moved = linear(partial(forward, form), partial(transpose, form), given, tangents)
    return (out, mean, variance), moved


def _normalized(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None, form: Form) -> _Results:
    # Fused with what makes x, the sums would be added up in an order that depends on it. Read when it is finished, they
    # are the same, bit for bit, whatever grows beside the layer that x comes from.
    wide = widen(lax.optimization_barrier(x))
    count = _count(x, form)
    mean = sums(wide, form.over) / count
    centred = wide - mean if form.centred else wide
    variance = sums(centred * centred, form.over) / count
    out = centred * lax.rsqrt(variance + form.eps)
    out = out if weight is None else out * _at(weight, out, form)
    out = out if bias is None else out + _at(bias, out, form)
    return out.astype(x.dtype), mean if form.centred else jnp.zeros_like(mean), variance


def _forward(form: Form, given: _Given, moves: _Moves) -> _Results:
    x, weight, bias = moves
    normed, moved, count = _normed(given), widen(x), _count(x, form)
    mean = sums(moved, form.over) / count if form.centred else jnp.zeros_like(given.mean)
    along = sums(normed * moved, form.over) / count
    out = (moved - mean - normed * along) * given.rstd
    out = out if given.weight is None else out * _at(given.weight, out, form)
    out = out if weight is None else out + normed * _at(weight, out, form)
    out = out if bias is None else out + _at(bias, out, form)
    return out.astype(x.dtype), mean, 2 * along / given.rstd


def _transpose(form: Form, given: _Given, cotangents: _Results) -> _Moves:
    out, mean, variance = cotangents
    out = widen(lax.optimization_barrier(out))
    normed, count = _normed(given), _count(out, form)
    beside = tuple(axis for axis in range(out.ndim) if axis not in form.affine)
    weight = 1 if given.weight is None else _at(given.weight, out, form)
    of_bias, of_weight = sums(out, beside), sums(out * normed, beside)
    if beside == form.over:  # one pass for the gradients of all three
        total, along = weight * of_bias, weight * of_weight
    else:
        total, along = sums(out * weight, form.over), sums(out * weight * normed, form.over)
    along = (along - 2 * variance / (given.rstd * given.rstd)) / count
    shared = normed * along
    if form.centred:
        shared = shared + (total - mean / given.rstd) / count
    of_x = given.rstd * (out * weight - shared)
    return of_x.astype(given.x.dtype), _like(of_weight, given.weight), _like(of_bias, given.bias)


_normalized_alone = fenced(_normalized, static=(3,))
_forward_alone = fenced(_forward, static=(0,))
_transpose_alone = fenced(_transpose, static=(0,))


def _normed(given: _Given) -> jax.Array:
    return (widen(given.x) - given.mean) * given.rstd


def _count(x: jax.Array, form: Form) -> int:
    return math.prod(x.shape[axis] for axis in form.over)


def _at(vector: jax.Array, x: jax.Array, form: Form) -> jax.Array:
    """A weight or bias, shaped to meet `x`, in its dtype."""
    return vector.astype(x.dtype).reshape([size if axis in form.affine else 1 for axis, size in enumerate(x.shape)])


def _like(gradient: jax.Array, parameter: jax.Array | None) -> jax.Array | None:
    return None if parameter is None else gradient.reshape(parameter.shape).astype(parameter.dtype)
