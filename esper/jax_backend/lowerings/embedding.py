"""Tables of rows (aten/src/ATen/native/Embedding.cpp, Onehot.cpp). An index out of range gives a row of NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.errors import RefusedError
from esper.jax_backend.promotion import default_int
from esper.jax_backend.registry import lowers

_MEAN, _MAX = 1, 2  # modes of embedding_bag


@lowers("aten.embedding.default")
def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False, bool sparse=False) -> Tensor"""  # noqa: E501
    rows = jnp.take(weight, indices, axis=0, mode="fill")
    constant = jax.lax.stop_gradient(rows)
    if scale_grad_by_freq:
        counts = jnp.zeros(weight.shape[0], weight.dtype).at[indices].add(1, mode="drop")
        # The value of `rows` with the gradient of `rows / count`.
        rows = constant + (rows - constant) / counts[indices][..., None]
    if padding_idx >= 0:
        rows = jnp.where((indices == padding_idx)[..., None], constant, rows)
    return rows


@lowers("aten.embedding_renorm.default")
def embedding_renorm(self, indices, max_norm, norm_type):
    """embedding_renorm(Tensor self, Tensor indices, float max_norm, float norm_type) -> Tensor"""
    norms = jnp.linalg.norm(self, norm_type, axis=1, keepdims=True)
    looked_up = jnp.zeros(self.shape[0], bool).at[indices].set(True, mode="drop")
    long = looked_up[:, None] & (norms > max_norm)
    return jnp.where(long, self * (max_norm / (norms + 1e-7)), self).astype(self.dtype)


@lowers("aten.embedding_bag.default", "aten.embedding_bag.padding_idx")
@lowers("aten._embedding_bag.default", "aten._embedding_bag_forward_only.default")
def embedding_bag(
    weight,
    indices,
    offsets,
    scale_grad_by_freq=False,
    mode=0,
    sparse=False,
    per_sample_weights=None,
    include_last_offset=False,
    padding_idx=-1,
):
    """embedding_bag.padding_idx(Tensor weight, Tensor indices, Tensor offsets, bool scale_grad_by_freq, int mode, bool sparse, Tensor? per_sample_weights, bool include_last_offset, int? padding_idx) -> (Tensor, Tensor, Tensor, Tensor)"""  # noqa: E501
    if scale_grad_by_freq:
        raise RefusedError("embedding_bag with scale_grad_by_freq=True is not supported: leave it False")
    offsets = offsets[:-1] if include_last_offset else offsets
    bags = offsets.shape[0]
    bag = jnp.searchsorted(offsets, jnp.arange(indices.shape[0]), side="right") - 1
    counted = jnp.ones(indices.shape, bool) if padding_idx in (None, -1) else indices != padding_idx
    sizes = jax.ops.segment_sum(counted.astype(default_int()), bag, bags)
    rows = jnp.take(weight, indices, axis=0, mode="fill")
    if mode == _MAX:
        found, places = _largest_of_bags(rows, bag, bags, counted)
        return found, bag, sizes, indices[places]
    scale = counted.astype(rows.dtype) if per_sample_weights is None else jnp.where(counted, per_sample_weights, 0)
    found = jax.ops.segment_sum(jnp.where(counted[:, None], rows, 0) * scale[:, None], bag, bags)
    if mode == _MEAN:
        found = found / jnp.maximum(sizes, 1)[:, None].astype(found.dtype)
    return found, bag, sizes, sizes


def _largest_of_bags(rows, bag, bags, counted):
    """The largest entry of each bag and column, the first among equals, and its place; zeros for empty bags."""
    order = jnp.where(counted[:, None], jax.lax.stop_gradient(rows), -jnp.inf)
    best = jax.ops.segment_max(order, bag, bags)
    places = jnp.arange(rows.shape[0])[:, None]
    wins = counted[:, None] & (order == best[bag])
    first = jax.ops.segment_min(jnp.where(wins, places, rows.shape[0]), bag, bags)
    known = first < rows.shape[0]
    first = jnp.where(known, first, 0)
    return jnp.where(known, jnp.take_along_axis(rows, first, axis=0), 0), first


@lowers("aten.one_hot.default")
def one_hot(x, num_classes=-1):
    """one_hot(Tensor self, int num_classes=-1) -> Tensor"""
    return jax.nn.one_hot(x, num_classes, dtype=default_int())
