"""Counting into bins (aten/src/ATen/native/Histogram.cpp, cpu/HistogramKernel.cpp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.jax_backend.registry import lowers


@lowers("aten.histc.default")
def histc(x, bins=100, min=0, max=0):
    """histc(Tensor self, int bins=100, Scalar min=0, Scalar max=0) -> Tensor"""
    values = jax.lax.stop_gradient(x).reshape(-1)
    low, high = _edges(values, min, max)
    # The last bin includes its right edge; what is outside, and NaN, is not counted.
    place = jnp.minimum((values - low) * bins / (high - low), bins - 1)
    inside = (values >= low) & (values <= high)
    place = jnp.where(inside, place, bins).astype(jnp.int32)
    return jnp.zeros(bins, x.dtype).at[place].add(1, mode="drop")


@lowers("aten.histogram.bin_ct")
def histogram(x, bins=100, *, range=None, weight=None, density=False):
    """histogram.bin_ct(Tensor self, int bins=100, *, float[]? range=None, Tensor? weight=None, bool density=False) -> (Tensor hist, Tensor bin_edges)"""  # noqa: E501
    points = jax.lax.stop_gradient(x).reshape(-1, 1)
    edges = histogramdd_bin_edges(points, [bins], range=range)
    return _counted(points, edges, weight, density), edges[0]


@lowers("aten.histogram.bins_tensor")
def histogram_of_edges(x, bins, *, weight=None, density=False):
    """histogram.bins_tensor(Tensor self, Tensor bins, *, Tensor? weight=None, bool density=False) -> (Tensor hist, Tensor bin_edges)"""  # noqa: E501
    return _counted(jax.lax.stop_gradient(x).reshape(-1, 1), [bins], weight, density), bins


@lowers("aten._histogramdd_bin_edges.default")
def histogramdd_bin_edges(x, bins, *, range=None, weight=None, density=False):
    """_histogramdd_bin_edges(Tensor self, int[] bins, *, float[]? range=None, Tensor? weight=None, bool density=False) -> Tensor[]"""  # noqa: E501
    points = jax.lax.stop_gradient(x).reshape(-1, x.shape[-1])
    edges = []
    for column, count in enumerate(bins):
        if range is not None:
            low, high = (jnp.asarray(edge, x.dtype) for edge in range[2 * column : 2 * column + 2])
        elif points.size:
            low, high = points[:, column].min(), points[:, column].max()
        else:
            low, high = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
        equal = low == high
        low, high = jnp.where(equal, low - 0.5, low), jnp.where(equal, high + 0.5, high)
        edges.append(_spaced(low, high, count + 1))
    return edges


@lowers("aten._histogramdd_from_bin_cts.default")
def histogramdd_from_bin_cts(x, bins, *, range=None, weight=None, density=False):
    """_histogramdd_from_bin_cts(Tensor self, int[] bins, *, float[]? range=None, Tensor? weight=None, bool density=False) -> Tensor"""  # noqa: E501
    return histogramdd_from_bin_tensors(x, histogramdd_bin_edges(x, bins, range=range), weight=weight, density=density)


@lowers("aten._histogramdd_from_bin_tensors.default")
def histogramdd_from_bin_tensors(x, bins, *, weight=None, density=False):
    """_histogramdd_from_bin_tensors(Tensor self, Tensor[] bins, *, Tensor? weight=None, bool density=False) -> Tensor"""  # noqa: E501
    return _counted(jax.lax.stop_gradient(x).reshape(-1, x.shape[-1]), bins, weight, density)


def _counted(points, edges, weight, density):
    """How many of `points`, (count, dimensions), or what weight of them, is in each bin."""
    edges = [jax.lax.stop_gradient(e) for e in edges]
    places, inside = [], jnp.ones(points.shape[0], bool)
    for column, edge in zip(points.T, edges, strict=True):
        bins = edge.shape[0] - 1
        inside &= (column >= edge[0]) & (column <= edge[-1])
        places.append(jnp.minimum(_upper_bound(edge, column) - 1, bins - 1))  # the last bin includes its right edge
    shape = [edge.shape[0] - 1 for edge in edges]
    weights = jnp.ones(points.shape[0], points.dtype) if weight is None else jax.lax.stop_gradient(weight).reshape(-1)
    hist = jnp.zeros(shape, points.dtype).at[tuple(places)].add(jnp.where(inside, weights, 0), mode="drop")
    if density:
        hist = hist / hist.sum()
        for axis, edge in enumerate(edges):
            hist = hist / jnp.diff(edge).reshape(-1, *(1,) * (len(edges) - axis - 1))
    return hist


def _edges(values, low, high):
    """The outermost edges; equal ones stand for the smallest and the largest value."""
    low, high = (jnp.asarray(edge, values.dtype) for edge in (low, high))
    if values.size:
        equal = low == high
        low, high = jnp.where(equal, values.min(), low), jnp.where(equal, values.max(), high)
    equal = low == high
    return jnp.where(equal, low - 1, low), jnp.where(equal, high + 1, high)


def _spaced(low, high, count):
    """`count` values from `low` to `high`, counted from the nearer end as torch's linspace does."""
    step = (high - low) / (count - 1)
    at = jnp.arange(count)
    return jnp.where(at < count // 2, low + step * at, high - step * (count - 1 - at)).astype(low.dtype)


def _upper_bound(edges, values):
    """How many of the ascending `edges` are not above each value; for others what C++'s bisection answers."""
    first = jnp.zeros(values.shape, jnp.int32)
    left = jnp.full(values.shape, edges.shape[0], jnp.int32)
    for _ in range(edges.shape[0].bit_length()):
        half = left // 2
        beyond = (left > 0) & ~(values < edges[jnp.minimum(first + half, edges.shape[0] - 1)])
        first, left = jnp.where(beyond, first + half + 1, first), jnp.where(beyond, left - half - 1, half)
    return first
