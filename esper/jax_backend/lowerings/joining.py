"""Joining, splitting and tiling (aten/src/ATen/native/TensorShape.cpp, Repeat.cpp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.errors import RefusedError
from esper.jax_backend.axes import at_least_1d, axis
from esper.jax_backend.promotion import promote
from esper.jax_backend.registry import lowers


@lowers("aten.atleast_1d.default")
def atleast_1d(x):
    """atleast_1d(Tensor self) -> Tensor"""
    return at_least_1d(x)


@lowers("aten.block_diag.default")
def block_diag(tensors):
    """block_diag(Tensor[] tensors) -> Tensor"""
    return jax.scipy.linalg.block_diag(*promote(*(jnp.atleast_2d(x) for x in tensors)))


@lowers("aten.broadcast_tensors.default")
def broadcast_tensors(tensors):
    """broadcast_tensors(Tensor[] tensors) -> Tensor[]"""
    return jnp.broadcast_arrays(*tensors)


@lowers("aten.cartesian_prod.default")
def cartesian_prod(tensors):
    """cartesian_prod(Tensor[] tensors) -> Tensor"""
    if len(tensors) == 1:
        return tensors[0]
    return jnp.stack(jnp.meshgrid(*tensors, indexing="ij"), axis=-1).reshape(-1, len(tensors))


@lowers("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(tensors, dim=0):
    """cat(Tensor[] tensors, int dim=0) -> Tensor"""
    arrays = promote(*tensors)
    # Torch passes over empty tensors of one dimension whatever the shape of the others.
    kept = [x for x in arrays if not (x.ndim == 1 and isinstance(x.shape[0], int) and x.shape[0] == 0)] or arrays[:1]
    return jnp.concatenate(kept, axis=axis(kept[0], dim))


@lowers("aten.chunk.default", "aten.unsafe_chunk.default")
def chunk(x, chunks, dim=0):
    """chunk(Tensor(a -> *) self, int chunks, int dim=0) -> Tensor(a)[]"""
    return split(x, max(-(-x.shape[dim] // chunks), 1), dim)


@lowers("aten.column_stack.default")
def column_stack(tensors):
    """column_stack(Tensor[] tensors) -> Tensor"""
    return jnp.column_stack(promote(*tensors))


@lowers("aten.dstack.default")
def dstack(tensors):
    """dstack(Tensor[] tensors) -> Tensor"""
    return jnp.dstack(promote(*tensors))


@lowers("aten.hstack.default")
def hstack(tensors):
    """hstack(Tensor[] tensors) -> Tensor"""
    return jnp.hstack(promote(*tensors))


@lowers("aten.meshgrid.default")
def meshgrid(tensors):
    """meshgrid(Tensor[] tensors) -> Tensor[]"""
    return meshgrid_indexing(tensors, indexing="ij")


@lowers("aten.meshgrid.indexing")
def meshgrid_indexing(tensors, *, indexing):
    """meshgrid.indexing(Tensor[] tensors, *, str indexing) -> Tensor[]"""
    return jnp.meshgrid(*(at_least_1d(x) for x in tensors), indexing=indexing)


@lowers("aten.repeat_interleave.self_int")
def repeat_interleave(x, repeats, dim=None, *, output_size=None):
    """repeat_interleave.self_int(Tensor self, SymInt repeats, int? dim=None, *, SymInt? output_size=None) -> Tensor"""
    x, dim = (x.reshape(-1), 0) if dim is None else (x, axis(x, dim))
    spread = jnp.broadcast_to(jnp.expand_dims(x, dim + 1), (*x.shape[: dim + 1], repeats, *x.shape[dim + 1 :]))
    return spread.reshape(*x.shape[:dim], x.shape[dim] * repeats, *x.shape[dim + 1 :])


@lowers("aten.repeat_interleave.self_Tensor")
def repeat_interleave_tensor(x, repeats, dim=None, *, output_size=None):
    """repeat_interleave.self_Tensor(Tensor self, Tensor repeats, int? dim=None, *, SymInt? output_size=None) -> Tensor"""  # noqa: E501
    _need_size("repeat_interleave", output_size)
    return jnp.repeat(x, repeats, dim, total_repeat_length=output_size)


@lowers("aten.repeat_interleave.Tensor")
def repeat_interleave_places(repeats, *, output_size=None):
    """repeat_interleave.Tensor(Tensor repeats, *, SymInt? output_size=None) -> Tensor"""
    _need_size("repeat_interleave", output_size)
    return jnp.repeat(jnp.arange(repeats.shape[0], dtype=repeats.dtype), repeats, total_repeat_length=output_size)


def _need_size(op, output_size):
    if output_size is None:
        raise RefusedError(f"{op} with a tensor of counts has a size that depends on data: pass output_size=")


@lowers("aten.split.Tensor", "aten.split_copy.Tensor", "aten.unsafe_split.Tensor")
def split(x, split_size, dim=0):
    """split.Tensor(Tensor(a -> *) self, SymInt split_size, int dim=0) -> Tensor(a)[]"""
    size = x.shape[dim]
    starts = range(0, size, split_size) if split_size and size else [0]
    return [jax.lax.slice_in_dim(x, s, min(s + split_size, size), axis=dim) for s in starts]


@lowers("aten.split_with_sizes.default", "aten.split_with_sizes_copy.default", "aten.split.sizes", "aten.split.default")
@lowers("aten.unsafe_split_with_sizes.default")
def split_with_sizes(x, split_sizes, dim=0):
    """split_with_sizes(Tensor(a -> *) self, SymInt[] split_sizes, int dim=0) -> Tensor(a)[]"""
    return jax.lax.split(x, split_sizes, axis(x, dim))


@lowers("aten.stack.default")
def stack(tensors, dim=0):
    """stack(Tensor[] tensors, int dim=0) -> Tensor"""
    return jnp.stack(promote(*tensors), axis=dim)


@lowers("aten.tensor_split.indices")
def tensor_split(x, indices, dim=0):
    """tensor_split.indices(Tensor(a -> *) self, SymInt[] indices, int dim=0) -> Tensor(a)[]"""
    return jnp.array_split(x, indices, axis=dim)


@lowers("aten.tensor_split.sections")
def tensor_split_sections(x, sections, dim=0):
    """tensor_split.sections(Tensor(a -> *) self, SymInt sections, int dim=0) -> Tensor(a)[]"""
    return jnp.array_split(x, sections, axis=dim)


@lowers("aten.unbind.int", "aten.unbind_copy.int")
def unbind(x, dim=0):
    """unbind.int(Tensor(a -> *) self, int dim=0) -> Tensor(a)[]"""
    return [jax.lax.index_in_dim(x, i, dim, keepdims=False) for i in range(x.shape[dim])]


@lowers("aten.vstack.default", "aten.row_stack.default")
def vstack(tensors):
    """vstack(Tensor[] tensors) -> Tensor"""
    return jnp.vstack(promote(*tensors))
