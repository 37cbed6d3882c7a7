"""A function and its derivative as two compiled programs, for those who call them at different times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import struct
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

Function = Callable[[Sequence[jax.Array], Sequence[jax.Array], Any], tuple[list[jax.Array], Any]]
"""Takes what moves, what is fixed, and a tree of the rest; returns outputs, and a tree of what else comes out."""


class Residuals(struct.PyTreeNode):
    """What a backward needs besides the arguments.

    Attributes:
        arrays: What the forward has kept.
        tree: How the pullback is put together of all its arrays.
        places: For each of those where it is among the arguments, -1: it is the next of `arrays`.
        reach: For each output, which of what moves it depends on.
    """

    arrays: list[jax.Array]
    tree: Any = struct.field(pytree_node=False)
    places: tuple[int, ...] = struct.field(pytree_node=False)
    reach: tuple[frozenset[int], ...] = struct.field(pytree_node=False)


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

    def _forward(
        self, moving: Sequence[jax.Array], fixed: Sequence[jax.Array], rest: Any
    ) -> tuple[list[jax.Array], Any, Residuals]:
        outputs, pull, more = jax.vjp(lambda moving: self._function(moving, fixed, rest), moving, has_aux=True)
        leaves, tree = jax.tree.flatten(pull)
        known = {id(leaf): place for place, leaf in enumerate((*moving, *fixed))}
        places = tuple(known.get(id(leaf), -1) for leaf in leaves)
        kept = [leaf for leaf, place in zip(leaves, places, strict=True) if place < 0]
        jaxpr = jax.make_jaxpr(lambda moving: self._function(moving, fixed, rest)[0])(moving)
        return outputs, more, Residuals(kept, tree, places, reach(jaxpr))

    def _backward(
        self, residuals: Residuals, moving: Sequence[jax.Array], fixed: Sequence[jax.Array], slopes: Sequence[Any]
    ) -> list[jax.Array]:
        given, kept = (*moving, *fixed), iter(residuals.arrays)
        leaves = [next(kept) if place < 0 else given[place] for place in residuals.places]
        (found,) = jax.tree.unflatten(residuals.tree, leaves)(list(slopes))
        return found


def reach(closed: ClosedJaxpr) -> tuple[frozenset[int], ...]:
    """For each output, the places of the inputs that a derivative may lead to."""
    return _reach(closed.jaxpr, [frozenset([place]) for place in range(len(closed.jaxpr.invars))])


def _reach(jaxpr: Jaxpr, given: Sequence[frozenset[int]]) -> tuple[frozenset[int], ...]:
    nothing: frozenset[int] = frozenset()
    known: dict[Var, frozenset[int]] = dict(zip(jaxpr.invars, given, strict=True))

    def of(atom: Any) -> frozenset[int]:
        return nothing if isinstance(atom, Literal) else known.get(atom, nothing)

    for eqn in jaxpr.eqns:
        inputs = [of(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        if eqn.primitive.name == "stop_gradient":
            outputs: Sequence[frozenset[int]] = [nothing] * len(eqn.outvars)
        elif isinstance(inner, ClosedJaxpr):
            outputs = _reach(inner.jaxpr, inputs)
        else:
            outputs = [nothing.union(*inputs)] * len(eqn.outvars)
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return tuple(of(atom) for atom in jaxpr.outvars)
