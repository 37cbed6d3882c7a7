"""A function and its derivative as two compiled programs, for those who call them at different times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import struct

Function = Callable[[Sequence[jax.Array], Any], tuple[list[jax.Array], Any]]
"""Takes what moves, and a tree of what is fixed; returns outputs, and a tree of what else comes out."""


class Residuals(struct.PyTreeNode):
    """What a backward needs besides the arguments.

    Attributes:
        arrays: What the forward has kept.
        tree: How the pullback is put together of all its arrays.
        places: For each of those where it is among the arguments, -1: it is the next of `arrays`.
    """

    arrays: list[jax.Array]
    tree: Any = struct.field(pytree_node=False)
    places: tuple[int, ...] = struct.field(pytree_node=False)


class Pullback:
    """A function, its values with what a backward needs, and that backward: each compiled once for each kind of input.

    Arguments that the backward needs are given to it again; as results of the forward they would be copied.

    Args:
        function: What is differentiated with respect to its first argument; pure.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self.values = jax.jit(function)
        self.forward = jax.jit(self._forward)
        self.backward = jax.jit(self._backward)

    def _forward(self, moving: Sequence[jax.Array], fixed: Any) -> tuple[list[jax.Array], Any, Residuals]:
        outputs, pull, more = jax.vjp(lambda moving: self._function(moving, fixed), moving, has_aux=True)
        leaves, tree = jax.tree.flatten(pull)
        known = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves((moving, fixed)))}
        places = tuple(known.get(id(leaf), -1) for leaf in leaves)
        kept = [leaf for leaf, place in zip(leaves, places, strict=True) if place < 0]
        return outputs, more, Residuals(kept, tree, places)

    def _backward(
        self, residuals: Residuals, moving: Sequence[jax.Array], fixed: Any, slopes: Sequence[Any]
    ) -> list[jax.Array]:
        given, kept = jax.tree.leaves((moving, fixed)), iter(residuals.arrays)
        leaves = [next(kept) if place < 0 else given[place] for place in residuals.places]
        (found,) = jax.tree.unflatten(residuals.tree, leaves)(list(slopes))
        return found
