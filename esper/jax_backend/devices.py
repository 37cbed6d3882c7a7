"""Arrays that lie on several devices, and on those of several processes: fetched whole, or joined by others."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esper.jax_backend.interchange import is_traced

Tree = TypeVar("Tree")


def whole(array: jax.Array) -> Any:
    """The array, in memory that this process can read.

    Parts that only other processes hold are sent to all of them, so every process is to ask for it.
    """
    if is_traced(array) or not is_spread(array) or array.is_fully_replicated:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def fetched(tree: Any) -> Any:
    """The values of a tree's arrays, as numpy arrays; as `whole` for those of several processes."""
    return jax.device_get(jax.tree.map(whole, tree))


def is_main() -> bool:
    """Whether this process is the one that writes files, of several."""
    return jax.process_index() == 0


def is_spread(tree: Any) -> bool:
    """Whether some of the tree's arrays lie on devices of several processes."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in _concrete(tree))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the tree's arrays were placed on; None where they lie on one device."""
    shardings = (leaf.sharding for leaf in _concrete(tree) if isinstance(leaf, jax.Array) and leaf.committed)
    meshes = (sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding))
    return next((mesh for mesh in meshes if isinstance(mesh, Mesh)), None)


def beside(tree: Tree, others: Any) -> Tree:
    """The tree with what lies on one device copied to all those that `others` were placed on.

    An optimiser's step count or a run's key is such: left where it was made, it would mean a compile at the first step,
    and another at the second, when the step itself has put it on all devices.
    """
    mesh = mesh_of(others)
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def joined(leaf: Any) -> Any:
        is_apart = isinstance(leaf, jax.Array) and not is_traced(leaf) and not leaf.committed
        return put(leaf, everywhere) if is_apart else leaf

    return jax.tree.map(joined, tree)


def put(array: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    """The array placed, in memory of its own; every process gives the same values.

    What `device_put` gives may share memory with what it is given, and be deleted with it by a step that consumes it.
    """
    if isinstance(array, np.ndarray):
        own = np.array(array, dtype=jax.dtypes.canonicalize_dtype(array.dtype))
    else:
        own = jnp.copy(array)
    is_local = isinstance(own, np.ndarray) or own.is_fully_addressable
    if sharding.is_fully_addressable or not is_local or jnp.issubdtype(own.dtype, jax.dtypes.prng_key):
        return jax.device_put(own, sharding)
    # `device_put` would have the processes compare every value first.
    return jax.make_array_from_callback(own.shape, sharding, lambda part: own[part])


def _concrete(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if not is_traced(leaf)]
