"""Which call an artifact is for, and its inputs and outputs in containers that JAX alone can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from esper.errors import ExportError
from esper.jax_backend.call import arguments, prepare
from esper.jax_backend.source import ModuleSource
from esper.program import BindError, Program, Signature, TensorType, Tree, unflatten

_PLAIN = {"namedtuple": "tuple", "slice": "tuple", "dataclass": "dict", "ordered_dict": "dict"}


@dataclass(frozen=True)
class Chosen:
    """The call that an artifact is for.

    Attributes:
        signature: Its structure, dtypes and sizes.
        program: What runs.
    """

    signature: Signature
    program: Program

    @property
    def symbols(self) -> tuple[str, ...]:
        """The open sizes of the tensors, as the capture calls them."""
        dims = (dim for spec in self.program.user_inputs for dim in spec.type.shape)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))


def sized(signature: Signature, shapes: Sequence[tuple[int, ...]]) -> Signature:
    """The signature with tensors of these shapes."""
    given = iter(shapes)
    leaves = tuple(replace(x, shape=next(given)) if isinstance(x, TensorType) else x for x in signature.leaves)
    return replace(signature, leaves=leaves)


def choose(source: ModuleSource, example_inputs: Any, train: bool) -> Chosen:
    """The call of the example, or the only one that has been captured.

    Raises:
        ExportError: Nothing was captured, or calls of several kinds.
    """
    if example_inputs is None:
        return _only(source, train)
    args, kwargs = arguments(example_inputs)
    call = prepare(source, args, kwargs, train)
    signature = next(made for made, program in source.captures if program is call.program)
    return Chosen(sized(signature, [tuple(tensor.shape) for tensor in call.tensors]), call.program)


def _only(source: ModuleSource, train: bool) -> Chosen:
    found = [Chosen(signature, program) for signature, program in source.captures if program.train == train]
    kinds = [one for one in found if not any(_is_special_case(one, other) for other in found if other is not one)]
    if len(kinds) == 1:
        return kinds[0]
    mode = "training" if train else "evaluation"
    if not kinds:
        raise ExportError(
            f"no call in {mode} mode has been captured: give example_inputs=, a tuple of arguments, a dict of keyword "
            "arguments, or one tensor"
        )
    listed = "\n".join(f"  {one.signature}" for one in kinds)
    raise ExportError(f"calls of several kinds were captured in {mode} mode, choose by example_inputs=:\n{listed}")


def _is_special_case(one: Chosen, other: Chosen) -> bool:
    """Whether it is the other call at a size that the other's capture excludes."""
    if one.signature.family != other.signature.family or not other.program.guards:
        return False
    try:
        replace(other.program, guards=(), ranges={}).bind(one.signature.shapes)
    except BindError:
        return False
    return True


def plain(tree: Tree, place: str) -> Tree:
    """The structure in tuples, lists and dictionaries of text keys; fields of dataclasses are entries of dictionaries.

    Raises:
        ExportError: A dictionary's keys are neither text nor numbers, or a number and its text.
    """
    names = tuple(str(key) for key in tree.keys if isinstance(key, str | int))
    if len(set(names)) != len(tree.keys):
        raise ExportError(f"{place} have the keys {tree.keys!r}, and an artifact's dictionaries have text keys")
    kind = _PLAIN.get(tree.kind, tree.kind)
    members = tuple(plain(child, f"{place}[{key}]") for child, key in zip(tree.children, _keys(tree), strict=True))
    return Tree(kind, members, names if kind == "dict" else ())


def _keys(tree: Tree) -> list[Any]:
    return list(tree.keys) or list(range(len(tree.children)))


def containers(signature: Signature, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments around the leaves of tensors; None stands for every other leaf.

    Keyword arguments that hold no tensor are left out.
    """
    given = iter(leaves)
    full = [next(given) if isinstance(leaf, TensorType) else None for leaf in signature.leaves]
    args, kwargs = unflatten(plain(signature.tree, "the inputs"), full)
    return args, {name: value for name, value in kwargs.items() if jax.tree.leaves(value)}


def output(tree: Tree, leaves: list[Any]) -> Any:
    """The outputs in plain containers; numbers and sizes as arrays without dimensions.

    Raises:
        ExportError: An output is neither an array, a number nor None.
    """
    places = [path or "the output" for path in tree.paths()]
    arrays = [_array(leaf, place) for leaf, place in zip(leaves, places, strict=True)]
    return unflatten(plain(tree, "the outputs"), arrays)


def _array(leaf: Any, place: str) -> jax.Array:
    if isinstance(leaf, jax.Array | bool | int | float | complex) or jax_export.is_symbolic_dim(leaf):
        return jnp.asarray(leaf)
    raise ExportError(
        f"output {place} is {leaf!r}, a {type(leaf).__name__}: an artifact returns arrays, numbers and None only; "
        "leave it out of what the forward returns"
    )
