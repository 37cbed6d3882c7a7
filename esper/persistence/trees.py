"""Any pytree as plain data and arrays; what it is made of is asked of one like it when it is read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import StateError
from esper.jax_backend.devices import put
from esper.persistence.plain import Reader, Writer


def plain_tree(writer: Writer, tree: Any, place: str) -> Any:
    """The leaves of a tree with their paths, for JSON."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        [jax.tree_util.keystr(path), writer.plain(leaf, f"{place}{jax.tree_util.keystr(path)}")]
        for path, leaf in leaves
    ]


def tree_like(reader: Reader, held: Any, like: Any, place: str) -> Any:
    """A tree of the same form as `like`, its leaves as they were written, its arrays where those of `like` lie.

    Raises:
        StateError: The form is another, or an array has another shape or dtype.
    """
    wanted, form = jax.tree_util.tree_flatten_with_path(like)
    ours, theirs = [jax.tree_util.keystr(path) for path, _ in wanted], [path for path, _ in held]
    if ours != theirs:
        missing, more = [p for p in ours if p not in theirs], [p for p in theirs if p not in ours]
        raise StateError(
            f"{place} is not of the form that was saved: missing {missing[:5] or 'nothing'}, unexpected "
            f"{more[:5] or 'nothing'}; give one that is made as it was then"
        )
    leaves = [
        _leaf(reader.value(leaf), like, f"{place}{path}") for (path, leaf), (_, like) in zip(held, wanted, strict=True)
    ]
    return jax.tree_util.tree_unflatten(form, leaves)


def _leaf(leaf: Any, like: Any, place: str) -> Any:
    if not hasattr(like, "dtype"):
        return leaf
    if not hasattr(leaf, "dtype") or (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        kinds = (f"{one.dtype}{list(one.shape)}" if hasattr(one, "dtype") else repr(one) for one in (like, leaf))
        raise StateError("{} is {}, and {} was saved".format(place, *kinds))
    sharding = getattr(like, "sharding", None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return put(leaf, sharding)
    return (
        leaf
        if isinstance(leaf, np.ndarray | np.generic) == isinstance(like, np.ndarray | np.generic)
        else jnp.array(leaf)
    )
