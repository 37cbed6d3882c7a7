"""flex_attention: attention whose scores and whose mask are functions of the user's, run as Programs."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from esper.errors import RefusedError
from esper.jax_backend.lowerings.activation import safe_softmax
from esper.jax_backend.lowerings.reduction import logsumexp
from esper.jax_backend.platform.precision import PRECISION, widen
from esper.jax_backend.registry import lowers


@lowers("higher_order.flex_attention.default", bodies=True)
def flex_attention(query, key_, value, score_mod, mask_mod, scale, score_buffers=(), mask_buffers=(), *, run, key=None):
    """flex_attention(query, key, value, score_mod, mask_mod, scale, score_buffers, mask_buffers): output and statistics

    Args:
        score_mod: A Program of (score, batch, head, query place, key place, *score_buffers).
        mask_mod: A Program of (batch, head, query place, key place, *mask_buffers).

    Returns:
        The output, and of each row of scores the log-sum-exp and the largest, both over log(2).
    """
    if key is not None:
        raise RefusedError("it draws random numbers in its score_mod or mask_mod, which torch does not allow either")
    working = jnp.dtype(jnp.float64 if query.dtype == jnp.float64 else jnp.float32)
    product = _product(query.astype(working), _by_head(key_.astype(working), query).swapaxes(-1, -2))
    scores = _rounded_gradient(product, query.dtype) * scale
    mask = _everywhere(lambda *place: run(mask_mod, [*place, *mask_buffers])[0], scores.shape)
    # Where the mask hides a score, what score_mod makes of it is not differentiated: it may be infinite there.
    seen = jnp.where(mask, scores, lax.stop_gradient(scores))
    made = _everywhere(lambda *given: run(score_mod, [*given, *score_buffers])[0], scores.shape, seen)
    made = made if jnp.issubdtype(made.dtype, jnp.floating) else made.astype(working)
    made = jnp.where(mask, made, -jnp.inf)
    out, log_total = _attend(made, _by_head(value.astype(query.dtype), query))
    largest = lax.stop_gradient(jnp.max(made, axis=-1))
    return out, log_total / math.log(2), largest / math.log(2)


def _by_head(x, query):
    """(batch, heads, rows, size) with each head repeated for the query's heads that share it."""
    return jnp.repeat(x, query.shape[1] // x.shape[1], axis=1)


def _everywhere(function, shape, *scores):
    """`function` of an element of each of `scores` and of its place, at every place."""
    for axis in reversed(range(len(shape))):
        places = [0 if other == axis else None for other in range(len(shape))]
        function = jax.vmap(function, in_axes=(*(0 for _ in scores), *places))
    return function(*scores, *(jnp.arange(size) for size in shape))


def _product(a, b):
    return _wide_product(a, b).astype(b.dtype)


def _wide_product(a, b):
    return jnp.matmul(widen(a), widen(b), precision=PRECISION)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded_gradient(x, dtype):
    """`x` itself, its gradient as precise as `dtype` is: torch rounds it before the products of the backward."""
    return x


@_rounded_gradient.defjvp
def _rounded_gradient_jvp(dtype, given, moved):
    return given[0], moved[0].astype(dtype).astype(moved[0].dtype)


@jax.custom_jvp
def _attend(scores, value):
    """The values weighted by the softmax of each row, and the row's log-sum-exp; a row of only -inf has zeros."""
    weights, log_total = _weights(scores)
    return _product(weights.astype(value.dtype), value), log_total


@_attend.defjvp
def _attend_jvp(given, moved):
    # As torch's backward has it: with the weights unrounded, and the output as it was rounded.
    (scores, value), (by_scores, by_value) = given, moved
    weights, log_total = _weights(scores)
    used = weights.astype(value.dtype)
    out = _product(used, value)
    shifts = weights * by_scores
    shift = jnp.sum(shifts, axis=-1)
    by_out = _wide_product(shifts, value) - shift[..., None] * out + _wide_product(used, by_value)
    return (out, log_total), (by_out.astype(out.dtype), shift)


def _weights(scores):
    empty = jnp.all(scores == -jnp.inf, axis=-1)
    log_total = logsumexp(jnp.where(empty[..., None], 0, scores), (-1,))
    return safe_softmax(scores, -1), jnp.where(empty, -jnp.inf, log_total)
