"""Fourier transforms (aten/src/ATen/native/SpectralOps.cpp)."""

from __future__ import annotations

import math

import jax.numpy as jnp

from esper.jax_backend.promotion import to_float
from esper.jax_backend.registry import lowers

_NONE, _ROOT, _FULL = 0, 1, 2  # fft_norm_mode: none, by_root_n, by_n


@lowers("aten._fft_c2c.default")
def fft_c2c(x, dim, normalization, forward):
    """_fft_c2c(Tensor self, SymInt[] dim, int normalization, bool forward) -> Tensor"""
    out = jnp.fft.fftn(x, axes=dim) if forward else jnp.fft.ifftn(x, axes=dim, norm="forward")
    return _normalized(out, [x.shape[d] for d in dim], normalization)


@lowers("aten._fft_c2r.default")
def fft_c2r(x, dim, normalization, last_dim_size):
    """_fft_c2r(Tensor self, int[] dim, int normalization, SymInt last_dim_size) -> Tensor"""
    sizes = [*(x.shape[d] for d in dim[:-1]), last_dim_size]
    rows = jnp.fft.ifftn(x, axes=dim[:-1], norm="forward") if len(dim) > 1 else x
    out = jnp.fft.irfft(rows, last_dim_size, axis=dim[-1], norm="forward")
    return _normalized(out, sizes, normalization)


@lowers("aten.fft_ihfft2.default")
def fft_ihfft2(x, s=None, dim=(-2, -1), norm=None):
    """fft_ihfft2(Tensor self, SymInt[1]? s=None, int[1] dim=[-2,-1], str? norm=None) -> Tensor"""
    return fft_ihfftn(x, s, dim, norm)


@lowers("aten.fft_ihfftn.default")
def fft_ihfftn(x, s=None, dim=None, norm=None):
    """fft_ihfftn(Tensor self, SymInt[1]? s=None, int[1]? dim=None, str? norm=None) -> Tensor"""
    # Of real numbers, the inverse transform is the conjugate of the forward one.
    if dim is None:
        dim = range(-x.ndim if s is None else -len(s), 0)
    sizes = None if s is None else [x.shape[d] if size == -1 else size for d, size in zip(dim, s, strict=True)]
    swapped = {"forward": "backward", "ortho": "ortho"}.get(norm, "forward")
    return jnp.fft.rfftn(to_float(x), sizes, tuple(dim), swapped).conj()


@lowers("aten._fft_r2c.default")
def fft_r2c(x, dim, normalization, onesided):
    """_fft_r2c(Tensor self, int[] dim, int normalization, bool onesided) -> Tensor"""
    out = jnp.fft.rfftn(x, axes=dim) if onesided else jnp.fft.fftn(x, axes=dim)
    return _normalized(out, [x.shape[d] for d in dim], normalization)


@lowers("prims.fft_c2c.default")
def prims_fft_c2c(x, *, dim, forward):
    """fft_c2c(Tensor self, *, int[] dim, bool forward) -> Tensor"""
    return fft_c2c(x, dim, _NONE, forward)


@lowers("prims.fft_c2r.default")
def prims_fft_c2r(x, *, dim, last_dim_size):
    """fft_c2r(Tensor self, *, int[] dim, SymInt last_dim_size) -> Tensor"""
    return fft_c2r(x, dim, _NONE, last_dim_size)


@lowers("prims.fft_r2c.default")
def prims_fft_r2c(x, *, dim, onesided):
    """fft_r2c(Tensor self, *, int[] dim, bool onesided) -> Tensor"""
    return fft_r2c(x, dim, _NONE, onesided)


def _normalized(x, sizes, mode):
    size = math.prod(sizes)
    factor = {_ROOT: 1 / math.sqrt(size), _FULL: 1 / size}.get(mode)
    return x if factor is None else x * jnp.asarray(factor, x.real.dtype)
