"""Norms, activations, attention and the loss with their gradients in closed form."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed.tuned.products import column_sums


@jax.custom_vjp
def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Output, mean, variance; the latter two without gradients."""
    return _batch_norm_forward(x, scale, bias)[0]


def _batch_norm_forward(x, scale, bias):
    count = x.size // x.shape[-1]
    mean = column_sums(x) / count
    centred = x - mean
    variance = column_sums(centred * centred) / count
    inverse = lax.rsqrt(variance + 1e-5)
    return (centred * (inverse * scale) + bias, mean, variance), (x, mean, inverse, scale)


def _batch_norm_backward(kept, cotangents):
    (x, mean, inverse, scale), g = kept, cotangents[0]
    count = x.size // x.shape[-1]
    whitened = (x - mean) * inverse
    by_bias, by_scale = column_sums(g), column_sums(g * whitened)
    by_x = (scale * inverse) * (g - by_bias / count - whitened * (by_scale / count))
    return by_x, by_scale, by_bias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Over the last axis."""
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
    mean = jnp.mean(x, -1, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    return centred * inverse * scale + bias, (x, mean, inverse, scale)


def _layer_norm_backward(eps, kept, g):
    x, mean, inverse, scale = kept
    whitened, scaled = (x - mean) * inverse, g * scale
    along = jnp.mean(scaled * whitened, -1, keepdims=True)
    by_x = inverse * (scaled - jnp.mean(scaled, -1, keepdims=True) - whitened * along)
    return by_x, column_sums(g * whitened), column_sums(g)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
    """Of (batch, length, channels)."""
    return _group_norm_forward(x, scale, bias, groups)[0]


def _group_norm_forward(x, scale, bias, groups):
    mean = _by_group(x, groups)
    centred = x - mean
    inverse = lax.rsqrt(_by_group(centred * centred, groups) + 1e-5)
    return centred * (inverse * scale) + bias, (x, mean, inverse, scale)


def _group_norm_backward(groups, kept, g):
    x, mean, inverse, scale = kept
    whitened, scaled = (x - mean) * inverse, g * scale
    along = _by_group(scaled * whitened, groups)
    by_x = inverse * (scaled - _by_group(scaled, groups) - whitened * along)
    return by_x, column_sums(g * whitened), column_sums(g)


def _by_group(x: jax.Array, groups: int) -> jax.Array:
    """Means over length and each group's channels, (batch, 1, channels)."""
    batch, length, channels = x.shape
    sums = jnp.sum(x, 1).reshape(batch, groups, -1)
    means = jnp.sum(sums, 2, keepdims=True) / (length * channels // groups)
    return jnp.broadcast_to(means, sums.shape).reshape(batch, 1, channels)


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """The exact one."""
    return x * _normal(x)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    share = _normal(x)
    return x * share, (share + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))) * t


def _normal(x):
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """(batch, heads, length, width) each; the mask is true where a key is seen."""
    return _attend_forward(q, k, v, mask)[0]


def _attend_forward(q, k, v, mask):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q / math.sqrt(q.shape[-1]), k)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    raised = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
    shares = raised / jnp.sum(raised, -1, keepdims=True)
    return jnp.einsum("bhqk,bhkd->bhqd", shares, v), (q, k, v, shares)


def _attend_backward(kept, g):
    q, k, v, shares = kept
    by_share = jnp.einsum("bhqd,bhkd->bhqk", g, v)
    by_score = shares * (by_share - jnp.sum(by_share * shares, -1, keepdims=True)) / math.sqrt(q.shape[-1])
    by_q, by_k = jnp.einsum("bhqk,bhkd->bhqd", by_score, k), jnp.einsum("bhqk,bhqd->bhkd", by_score, q)
    return by_q, by_k, jnp.einsum("bhqk,bhqd->bhkd", shares, g), None


attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over everything but classes, which are last."""
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits, labels):
    top = jnp.max(logits, -1, keepdims=True)
    log_total = jnp.log(jnp.sum(jnp.exp(logits - top), -1, keepdims=True)) + top
    own = jnp.take_along_axis(logits, labels[..., None], -1)
    return jnp.mean(log_total - own), (logits, log_total, labels)


def _cross_entropy_backward(kept, g):
    logits, log_total, labels = kept
    hit = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    return (jnp.exp(logits - log_total) - hit) * (g / labels.size), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
