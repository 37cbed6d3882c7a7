"""Views by strides (aten/src/ATen/native/TensorShape.cpp, Resize.cpp).

Arrays here have no strides: a tensor's memory is taken to be its elements in order, as that of a contiguous
tensor is. What lies in memory beyond them cannot be had.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from esper.errors import RefusedError
from esper.jax_backend.registry import lowers


@lowers("aten.as_strided.default", "aten.as_strided_copy.default")
def as_strided(x, size, stride, storage_offset=None):
    """as_strided(Tensor(a) self, SymInt[] size, SymInt[] stride, SymInt? storage_offset=None) -> Tensor(a)"""
    places = _places(x, size, stride, storage_offset)
    return x.reshape(-1)[places]


@lowers("aten.as_strided_scatter.default")
def as_strided_scatter(x, src, size, stride, storage_offset=None):
    """as_strided_scatter(Tensor self, Tensor src, SymInt[] size, SymInt[] stride, SymInt? storage_offset=None) -> Tensor"""  # noqa: E501
    places = _places(x, size, stride, storage_offset)
    return x.reshape(-1).at[places].set(src.astype(x.dtype)).reshape(x.shape)


@lowers("aten.resize.default")
def resize(x, size):
    """resize(Tensor self, SymInt[] size, *, MemoryFormat? memory_format=None) -> Tensor"""
    count = math.prod(size)
    kept = x.reshape(-1)[:count]
    new = jnp.zeros(count - kept.size, x.dtype)  # torch leaves them as they are in memory, as in `torch.empty`
    return jnp.concatenate((kept, new)).reshape(size)


@lowers("aten.resize_as.default")
def resize_as(x, the_template):
    """resize_as(Tensor self, Tensor the_template, *, MemoryFormat? memory_format=None) -> Tensor"""
    return resize(x, the_template.shape)


def _places(x, size, stride, storage_offset):
    """Where in memory each element of the view lies."""
    places = np.full(size, storage_offset or 0, np.int32)
    for axis, (count, step) in enumerate(zip(size, stride, strict=True)):
        places += (np.arange(count, dtype=np.int32) * step).reshape(-1, *(1,) * (len(size) - axis - 1))
    if places.size and not 0 <= places.min() <= places.max() < x.size:
        raise RefusedError(
            f"as_strided reaches the elements {places.min()} to {places.max()} of a tensor of shape {x.shape}, "
            "beyond those it has: a view of a larger tensor is not known here, apply as_strided to that one"
        )
    return jnp.asarray(places)
