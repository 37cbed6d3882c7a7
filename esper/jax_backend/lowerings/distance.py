"""Distances between vectors. At distance zero the gradient is zero, as in torch."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.jax_backend.axes import at_least_1d
from esper.jax_backend.lowerings.unary import magnitude
from esper.jax_backend.platform.precision import PRECISION, widen
from esper.jax_backend.promotion import float_type, promote, result_type
from esper.jax_backend.registry import lowers
from esper.jax_backend.slope import slope

_BY_PRODUCT, _BY_DIFFERENCE = 1, 2  # values of `compute_mode`


@lowers("aten.cdist.default", "aten._cdist_forward.default")
def cdist(x1, x2, p=2.0, compute_mode=None):
    """cdist(Tensor x1, Tensor x2, float p=2, int? compute_mode=None) -> Tensor"""
    many = max(x1.shape[-2], x2.shape[-2]) > 25
    if p == 2 and compute_mode != _BY_DIFFERENCE and (compute_mode == _BY_PRODUCT or many):
        return _euclidean(widen(x1), widen(x2)).astype(x1.dtype)
    return _distance(widen(x1)[..., :, None, :] - widen(x2)[..., None, :, :], p).astype(x1.dtype)


@lowers("aten.cosine_similarity.default")
def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    """cosine_similarity(Tensor x1, Tensor x2, int dim=1, float eps=1e-08) -> Tensor"""
    dtype = result_type(x1, x2)
    x1, x2 = (at_least_1d(x) for x in jnp.broadcast_arrays(widen(x1), widen(x2)))
    return jnp.sum(_unit(x1, dim, eps) * _unit(x2, dim, eps), dim).astype(dtype)


@lowers("aten.pairwise_distance.default")
def pairwise_distance(x1, x2, p=2.0, eps=1e-6, keepdim=False):
    """pairwise_distance(Tensor x1, Tensor x2, float p=2, float eps=1e-06, bool keepdim=False) -> Tensor"""
    dtype = float_type(x1, x2)
    x1, x2 = promote(x1, x2)
    return _norm(widen(x1) - widen(x2) + eps, p, -1, keepdim).astype(dtype)


@lowers("aten.pdist.default", "aten._pdist_forward.default")
def pdist(x, p=2.0):
    """pdist(Tensor self, float p=2) -> Tensor"""
    first, second = np.triu_indices(x.shape[0], 1)
    return _distance(widen(x)[first] - widen(x)[second], p).astype(x.dtype)


def _distance(difference, p):
    """The norm over the last axis; of several largest differences each has the whole gradient, unlike in a norm."""
    if p != math.inf:
        return _norm(difference, p, -1)
    size = magnitude(difference)
    largest = jnp.max(lax.stop_gradient(size), -1, keepdims=True, initial=0)
    return largest[..., 0] + jnp.sum(jnp.where(size == largest, slope(size), 0), -1)


def _euclidean(x1, x2):
    """By the binomial formula: one matrix product, at the price of cancellation."""
    squares = jnp.sum(x1 * x1, -1)[..., :, None] + jnp.sum(x2 * x2, -1)[..., None, :]
    return _sqrt(squares - 2 * jnp.matmul(x1, x2.swapaxes(-1, -2), precision=PRECISION))


def _norm(x, p, axis, keepdims=False):
    size = magnitude(x)
    if p == 0:
        return jnp.sum(x != 0, axis, keepdims=keepdims).astype(x.dtype)
    if p == 1:
        return jnp.sum(size, axis, keepdims=keepdims)
    if p == 2:
        return _sqrt(jnp.sum(x * x, axis, keepdims=keepdims))
    if p == math.inf:
        return jnp.max(size, axis, keepdims=keepdims, initial=0)
    powers = jnp.sum(_pow(size, p), axis, keepdims=keepdims)
    return _pow(powers, 1 / p)


def _pow(x, exponent):
    """x ** exponent for x >= 0, with derivative 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.where(positive, x, 1) ** exponent, 0 * x)


def _sqrt(x):
    """The root of x, of 0 below 0, with derivative 0 there."""
    positive = ~(x <= 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _unit(x, axis, eps):
    length = _norm(x, 2, axis, keepdims=True)
    # The gradient is that of the length itself, also where it is clamped.
    return x / (length + lax.stop_gradient(jnp.maximum(length, eps) - length))
