"""Scaled dot-product attention: logits and softmax in float32 at least, whatever the dtype of the inputs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.attention import attend
from esper.jax_backend.platform.precision import PRECISION, accumulator
from esper.jax_backend.platform.softmax import softmax
from esper.jax_backend.registry import lowers


def _drops(*args, dropout_p=0.0, **_):
    return (args[4] if len(args) > 4 else dropout_p) > 0


def _flash_drops(*args, dropout_p=0.0, **_):
    return (args[3] if len(args) > 3 else dropout_p) > 0


@lowers("aten.scaled_dot_product_attention.default", draws=_drops)
def scaled_dot_product_attention(
    query, key_, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False, key=None
):
    """scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"""  # noqa: E501
    # Heads that share a key become further rows of the query: nothing is repeated.
    grouped = enable_gqa and query.shape[-3] != key_.shape[-3]
    logits = _mask(_logits(query, key_, scale, grouped), attn_mask, is_causal)
    keep = _kept(logits, dropout_p, key)
    if not grouped:
        return _attend(logits, value, keep, dropout_p).astype(query.dtype)
    logits, keep = (None if x is None else _rows_by_head(x, value.shape[-3]) for x in (logits, keep))
    out = _attend(logits, value, keep, dropout_p)
    return out.reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype)


@lowers("aten._scaled_dot_product_flash_attention_for_cpu.default", draws=_flash_drops)
def scaled_dot_product_flash_attention_for_cpu(
    query, key_, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None, key=None
):
    """_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None) -> (Tensor output, Tensor logsumexp)"""  # noqa: E501
    logits = _mask(_logits(query, key_, scale, False), attn_mask, is_causal)
    out = _attend(logits, value, _kept(logits, dropout_p, key), dropout_p)
    return out.astype(query.dtype), softmax(lax.stop_gradient(logits))[1][..., 0]


def _attend(logits, value, keep, p):
    """`attend`, for values and logits whose batches broadcast."""
    batch = jnp.broadcast_shapes(logits.shape[:-2], value.shape[:-2])
    spread = [None if x is None else jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (logits, value, keep)]
    return attend(*spread, p)


def _kept(logits, p, key):
    return None if p == 0 else jax.random.bernoulli(key, 1 - p, logits.shape)


def _logits(query, key, scale, grouped):
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    early = accumulator(query.dtype) == query.dtype  # the query is smaller than the logits, 16 bits would be rounded
    rows = _rows_by_head(query, key.shape[-3]) if grouped else query
    logits = _product(rows * scale if early else rows, key.swapaxes(-1, -2))
    logits = logits if early else logits * scale
    return logits.reshape(*query.shape[:-1], key.shape[-2]) if grouped else logits


def _mask(logits, mask, is_causal):
    if is_causal:
        # Aligned at the first query and the first key, also where their numbers differ.
        row, column = (lax.broadcasted_iota(jnp.int32, logits.shape[-2:], axis) for axis in (0, 1))
        logits = jnp.where(column <= row, logits, -jnp.inf)
    if mask is None:
        return logits
    if mask.dtype == bool:
        return jnp.where(mask, logits, -jnp.inf)
    return logits + mask.astype(logits.dtype)


def _product(a, b):
    return jnp.matmul(a, b, precision=PRECISION, preferred_element_type=accumulator(a.dtype))


def _rows_by_head(x, heads):
    """(..., heads * n, rows, size) as (..., heads, n * rows, size)."""
    return x.reshape(*x.shape[:-3], heads, (x.shape[-3] // heads) * x.shape[-2], x.shape[-1])
