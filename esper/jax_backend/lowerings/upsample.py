"""Resizing and sampling of maps. Resizing is separable: one spatial dimension after the other.

Source places are computed as torch computes them, in float32 unless the map is float64: a last-bit
difference there picks another neighbour.
"""

from __future__ import annotations

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.errors import RefusedError
from esper.jax_backend.platform.precision import PRECISION, contract, widen
from esper.jax_backend.registry import lowers

_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2
_ZEROS, _BORDER, _REFLECTION = 0, 1, 2
_CUBIC_A = -0.75


@lowers("aten.affine_grid_generator.default")
def affine_grid_generator(theta, size, align_corners):
    """affine_grid_generator(Tensor theta, SymInt[] size, bool align_corners) -> Tensor"""
    space = size[2:]
    axes = [np.linspace(-1, 1, n) * (1 if align_corners else (n - 1) / n) if n > 1 else np.zeros(1) for n in space]
    # Coordinates run the other way round: x is the last dimension.
    base = np.stack([*reversed(np.meshgrid(*axes, indexing="ij")), np.ones(space)], axis=-1)
    places = jnp.asarray(base.reshape(-1, len(space) + 1), widen(theta).dtype)
    grid = jnp.matmul(places, widen(theta).swapaxes(1, 2), precision=PRECISION)
    return grid.reshape(size[0], *space, len(space)).astype(theta.dtype)


@lowers("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners):
    """grid_sampler(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor"""  # noqa: E501
    sizes = input.shape[2:]
    x, grid = widen(input), widen(grid)
    # grid[..., 0] is x, which counts along the last dimension.
    places = [_unnormalise(grid[..., i], n, align_corners) for i, n in enumerate(reversed(sizes))][::-1]
    inside = partial(_inside, padding_mode=padding_mode, align_corners=align_corners)
    if interpolation_mode == _BICUBIC:
        taps = [_cubic_taps(place) for place in places]
        taps = [[(inside(at, n), weight) for at, weight in tap] for tap, n in zip(taps, sizes, strict=True)]
    else:
        places = [inside(place, n) for place, n in zip(places, sizes, strict=True)]
        taps = [_nearest_taps(p) if interpolation_mode == _NEAREST else _linear_taps(p) for p in places]
    return _sample(x, taps).astype(input.dtype)


@lowers(*(f"aten.upsample_nearest{r}d.vec" for r in (1, 2, 3)))
def upsample_nearest_vec(input, output_size, scale_factors):
    """upsample_nearest2d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor"""
    return _nearest(input, _output_size(input, output_size, scale_factors), scale_factors, 0.0)


@lowers(*(f"aten._upsample_nearest_exact{r}d.vec" for r in (1, 2, 3)))
def upsample_nearest_exact_vec(input, output_size, scale_factors):
    """_upsample_nearest_exact2d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor"""
    return _nearest(input, _output_size(input, output_size, scale_factors), scale_factors, 0.5)


@lowers(*(f"aten.upsample_nearest{r}d.default" for r in (1, 2, 3)))
def upsample_nearest(x, output_size, *scales, **named):
    """upsample_nearest2d(Tensor self, SymInt[2] output_size, float? scales_h=None, float? scales_w=None) -> Tensor"""
    return _nearest(x, output_size, _scales(scales, named), 0.0)


@lowers(*(f"aten._upsample_nearest_exact{r}d.default" for r in (1, 2, 3)))
def upsample_nearest_exact(x, output_size, *scales, **named):
    """_upsample_nearest_exact2d(Tensor self, SymInt[2] output_size, float? scales_h=None, float? scales_w=None) -> Tensor"""  # noqa: E501
    return _nearest(x, output_size, _scales(scales, named), 0.5)


@lowers("aten._upsample_bicubic2d_aa.vec")
def upsample_bicubic2d_aa_vec(input, output_size, align_corners, scale_factors):
    """_upsample_bicubic2d_aa.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""  # noqa: E501
    size = _output_size(input, output_size, scale_factors)
    return _resample(input, size, align_corners, scale_factors, _cubic_kernel, 2)


@lowers("aten._upsample_bicubic2d_aa.default")
def upsample_bicubic2d_aa(x, output_size, align_corners, *scales, **named):
    """_upsample_bicubic2d_aa(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor"""  # noqa: E501
    return _resample(x, output_size, align_corners, _scales(scales, named), _cubic_kernel, 2)


@lowers("aten._upsample_bilinear2d_aa.vec")
def upsample_bilinear2d_aa_vec(input, output_size, align_corners, scale_factors):
    """_upsample_bilinear2d_aa.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""  # noqa: E501
    size = _output_size(input, output_size, scale_factors)
    return _resample(input, size, align_corners, scale_factors, _linear_kernel, 1)


@lowers("aten._upsample_bilinear2d_aa.default")
def upsample_bilinear2d_aa(x, output_size, align_corners, *scales, **named):
    """_upsample_bilinear2d_aa(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor"""  # noqa: E501
    return _resample(x, output_size, align_corners, _scales(scales, named), _linear_kernel, 1)


@lowers("aten._upsample_lanczos2d_aa.vec")
def upsample_lanczos2d_aa_vec(input, output_size, align_corners, scale_factors):
    """_upsample_lanczos2d_aa.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""  # noqa: E501
    size = _output_size(input, output_size, scale_factors)
    return _resample(input, size, align_corners, scale_factors, _lanczos_kernel, 3)


@lowers("aten._upsample_lanczos2d_aa.default")
def upsample_lanczos2d_aa(x, output_size, align_corners, *scales, **named):
    """_upsample_lanczos2d_aa(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor"""  # noqa: E501
    return _resample(x, output_size, align_corners, _scales(scales, named), _lanczos_kernel, 3)


@lowers("aten.upsample_bicubic2d.vec")
def upsample_bicubic2d_vec(input, output_size, align_corners, scale_factors):
    """upsample_bicubic2d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""  # noqa: E501
    return _interpolate(input, _output_size(input, output_size, scale_factors), align_corners, scale_factors, _cubic)


@lowers("aten.upsample_bicubic2d.default")
def upsample_bicubic2d(x, output_size, align_corners, *scales, **named):
    """upsample_bicubic2d(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor"""  # noqa: E501
    return _interpolate(x, output_size, align_corners, _scales(scales, named), _cubic)


@lowers("aten.upsample_linear1d.vec", "aten.upsample_bilinear2d.vec", "aten.upsample_trilinear3d.vec")
def upsample_linear_vec(input, output_size, align_corners, scale_factors):
    """upsample_bilinear2d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""  # noqa: E501
    return _interpolate(input, _output_size(input, output_size, scale_factors), align_corners, scale_factors, _linear)


@lowers("aten.upsample_linear1d.default", "aten.upsample_bilinear2d.default", "aten.upsample_trilinear3d.default")
def upsample_linear(x, output_size, align_corners, *scales, **named):
    """upsample_bilinear2d(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor"""  # noqa: E501
    return _interpolate(x, output_size, align_corners, _scales(scales, named), _linear)


def _cubic(places, size):
    """For each tap: where it stands and its weight."""
    return [(np.clip(at, 0, size - 1), weight) for at, weight in _cubic_taps(places, np)]


def _cubic_kernel(distance):
    """The cubic that Pillow resizes with: its slope parameter is not that of `upsample_bicubic2d`."""
    x = np.abs(distance)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(x.dtype)


def _cubic_taps(places, xp=jnp):
    below = xp.floor(places)
    t = places - below

    def near(d):
        return ((_CUBIC_A + 2) * d - (_CUBIC_A + 3)) * d * d + 1

    def far(d):
        return ((_CUBIC_A * d - 5 * _CUBIC_A) * d + 8 * _CUBIC_A) * d - 4 * _CUBIC_A

    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    return [(below + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)]


def _inside(place, size, *, padding_mode, align_corners):
    """A place outside of the map taken into it, unless the padding is zeros."""
    if padding_mode == _ZEROS:
        return place
    if padding_mode == _REFLECTION:
        low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        if span <= 0:
            return jnp.zeros_like(place)
        away = place - low
        away = jnp.where(away < 0, -away, away)
        turns = lax.stop_gradient(jnp.floor(away / span))
        rest = away - turns * span
        place = jnp.where(turns % 2 == 0, rest + low, span - rest + low)
    return lax.clamp(jnp.zeros((), place.dtype), place, jnp.asarray(size - 1, place.dtype))


def _interpolate(x, output_size, align_corners, scales, kind):
    out = widen(x)
    first = x.ndim - len(output_size)
    for i, count in enumerate(output_size):
        axis = first + i
        scale = None if scales is None else scales[i]
        places = _places(x.shape[axis], count, scale, align_corners, np.dtype(out.dtype))
        out = _weighted(out, axis, kind(places, x.shape[axis]))
    return out.astype(x.dtype)


def _lanczos_kernel(distance):
    return np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0).astype(distance.dtype)


def _linear(places, size):
    places = np.maximum(places, 0)
    below = np.minimum(np.floor(places), size - 1)
    above = np.minimum(below + 1, size - 1)
    weight = np.clip(places - below, 0, 1)
    return [(below, 1 - weight), (above, weight)]


def _linear_kernel(distance):
    return np.maximum(1 - np.abs(distance), 0)


def _linear_taps(places):
    below = lax.stop_gradient(jnp.floor(places))
    return [(below, below + 1 - places), (below + 1, places - below)]


def _nearest(x, output_size, scales, offset):
    first = x.ndim - len(output_size)
    for i, count in enumerate(output_size):
        axis, size = first + i, x.shape[first + i]
        scale = None if scales is None else scales[i]
        step = np.float32(1 / scale if scale else np.float32(size) / np.float32(count))
        sources = np.floor((np.arange(count, dtype=np.float32) + np.float32(offset)) * step)
        sources = np.minimum(sources, size - 1).astype(np.int32)
        if count == size:
            sources = np.arange(size)
        if count % size == 0 and (sources == np.arange(count) // (count // size)).all():
            x = jnp.repeat(x, count // size, axis)  # a broadcast, whose gradient is a sum and no scatter
        else:
            x = jnp.take(x, sources, axis, mode="clip")
    return x


def _nearest_taps(places):
    return [(lax.stop_gradient(jnp.round(places)), jnp.ones_like(places))]


def _output_size(x, output_size, scale_factors):
    if output_size is not None:
        return output_size
    sizes = x.shape[x.ndim - len(scale_factors) :]
    return [math.trunc(float(n) * factor) for n, factor in zip(sizes, scale_factors, strict=True)]


def _places(size, count, scale, align_corners, dtype):
    """Where each of `count` outputs falls on `size` inputs."""
    half = dtype.type(0 if align_corners else 0.5)
    return _step(size, count, scale, align_corners, dtype) * (np.arange(count, dtype=dtype) + half) - half


def _resample(x, output_size, align_corners, scales, kernel, reach):
    """Resizing by averages: `kernel` reaches `reach` outputs to either side where there are fewer of them."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise RefusedError(f"resizing a map of {x.dtype} with antialias=True is not supported: cast it to float first")
    out = widen(x)
    first = x.ndim - len(output_size)
    for i, count in enumerate(output_size):
        axis = first + i
        step = _step(x.shape[axis], count, None if scales is None else scales[i], align_corners, np.dtype(out.dtype))
        weights = jnp.asarray(_averages(x.shape[axis], count, step, kernel, reach))
        out = jnp.moveaxis(contract(out, weights, ((axis,), (1,))), -1, axis)
    return out.astype(x.dtype)


def _averages(size, count, step, kernel, reach):
    """What each of `size` inputs weighs in each of `count` outputs, (count, size)."""
    real = type(step)
    stretch = max(step, real(1))
    centres = step * (np.arange(count, dtype=real) + real(0.5))[:, None]
    low, high = (np.trunc(centres + side * stretch * real(reach) + real(0.5)) for side in (-1, 1))
    at = np.arange(size, dtype=real)
    weights = kernel((at - centres + real(0.5)) / stretch)
    weights = np.where((at >= low) & (at < high), weights, real(0))
    total = weights.sum(1, keepdims=True)
    return np.divide(weights, total, out=weights, where=total != 0)


def _sample(x, taps):
    """Sums x (batch, channels, *sizes) over the product of each dimension's taps, nothing standing outside."""
    sizes = x.shape[2:]
    flat = x.reshape(*x.shape[:2], math.prod(sizes))
    total = None
    for combined in _products(taps):
        index, weight, valid = 0, 1, True
        for (at, w), n in zip(combined, sizes, strict=True):
            valid = valid & (at >= 0) & (at <= n - 1)
            index = index * n + jnp.clip(lax.stop_gradient(at), 0, n - 1).astype(jnp.int32)
            weight = weight * w
        rows = index.reshape(index.shape[0], 1, math.prod(index.shape[1:]))
        found = jnp.take_along_axis(flat, rows, axis=2, mode="clip").reshape(*x.shape[:2], *index.shape[1:])
        part = jnp.where(valid[:, None], found * weight[:, None], 0)
        total = part if total is None else total + part
    return total


def _products(taps):
    if not taps:
        return [()]
    return [(tap, *rest) for tap in taps[0] for rest in _products(taps[1:])]


def _scales(positional, named):
    """The scale of each dimension, from ATen's arguments scales_d, scales_h, scales_w (or scales)."""
    scales = [*positional, *named.values()]
    return scales if any(scales) else None


def _step(size, count, scale, align_corners, dtype):
    """How many inputs each output is on from the one before."""
    real = dtype.type
    if align_corners:
        return real(size - 1) / real(count - 1) if count > 1 else real(0)
    return real(1 / scale) if scale else real(size) / real(count)


def _unnormalise(place, size, align_corners):
    return (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2


def _weighted(x, axis, taps):
    shape = (-1, *[1] * (x.ndim - axis - 1))
    parts = [
        jnp.take(x, at.astype(np.int32), axis, mode="clip") * jnp.asarray(weight.reshape(shape), x.dtype)
        for at, weight in taps
    ]
    return sum(parts[1:], start=parts[0])
