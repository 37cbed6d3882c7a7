"""Reductions of consecutive segments (aten/src/ATen/native/SegmentReduce.cpp)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from esper.errors import RefusedError
from esper.jax_backend.axes import axis as from_front
from esper.jax_backend.lowerings.scatter import scatter_add, scatter_extreme, scattered_product
from esper.jax_backend.registry import lowers

_START = {"sum": 0, "mean": 0, "prod": 1, "max": -np.inf, "min": np.inf}


@lowers("aten.segment_reduce.default")
def segment_reduce(data, reduce, *, lengths=None, indices=None, offsets=None, axis=0, unsafe=False, initial=None):
    """segment_reduce(Tensor data, str reduce, *, Tensor? lengths=None, Tensor? indices=None, Tensor? offsets=None, int axis=0, bool unsafe=False, Scalar? initial=None) -> Tensor"""  # noqa: E501
    if indices is not None:
        raise RefusedError("segment_reduce by indices is not supported, in torch neither: give lengths or offsets")
    dim = from_front(data, axis)
    ends = jnp.cumsum(lengths, -1) if offsets is None else offsets[..., 1:]
    counts = lengths if offsets is None else jnp.diff(offsets, axis=-1)
    starts = ends - counts
    # The segment of each place: how many have ended before it; none where no segment covers it.
    places = jnp.arange(data.shape[dim])
    segments = jnp.sum(ends[..., None] <= places[:, None].T, axis=-2)
    covered = jnp.any((starts[..., None] <= places) & (places < ends[..., None]), axis=-2)
    rest = (1,) * (data.ndim - dim - 1)
    index = jnp.where(covered, segments, counts.shape[-1]).reshape(*segments.shape, *rest)
    index = jnp.broadcast_to(index, data.shape)
    start = jnp.asarray(_START[reduce] if initial is None else initial, data.dtype)
    start = jnp.broadcast_to(start, (*counts.shape, *data.shape[dim + 1 :]))
    if reduce in ("max", "min"):
        return scatter_extreme(start, dim, index, data, reduce)
    if reduce == "prod":
        return scattered_product(start, dim, index, data)
    total = scatter_add(start, dim, index, data)
    if reduce == "sum":
        return total
    counts = counts.reshape(*counts.shape, *rest)
    none = jnp.nan if initial is None else total
    return jnp.where(counts == 0, none, total / jnp.maximum(counts, 1).astype(data.dtype))
