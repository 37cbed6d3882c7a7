"""One call of a model: its inputs taken apart, its Program found, its outputs put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from esper.jax_backend.devices import whole
from esper.jax_backend.evaluate import resolve
from esper.jax_backend.interchange import Taken, adopt, describe, is_foreign, to_array
from esper.jax_backend.registry import lowering
from esper.jax_backend.source import ModuleSource
from esper.program import Program, Ref, Signature, TensorType, flatten, unflatten


@dataclass(frozen=True)
class Call:
    """A call that is ready to run.

    Attributes:
        program: What to run.
        tensors: Its tensors in leaf order.
        foreign: Whether torch tensors came in, so that torch tensors go out.
    """

    program: Program
    tensors: list[jax.Array]
    foreign: bool


def arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of a call that was given as a tuple, a dict or one tensor."""
    if isinstance(given, Mapping):
        return (), dict(given)
    return (given, {}) if isinstance(given, tuple) else ((given,), {})


def prepare(
    source: ModuleSource, args: tuple[Any, ...], kwargs: Mapping[str, Any], train: bool, taken: Taken = adopt
) -> Call:
    """Finds the Program for a call, tracing if there is none that covers it; `taken` says how torch's tensors are."""
    leaves, tree = flatten((args, dict(kwargs)))
    places = [""] * len(leaves)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):  # the rest may be refused, by its place
        places = [path.removeprefix("[0]").removeprefix("[1]") for path in tree.paths()]
    arrays = [to_array(source, leaf, place, taken) for leaf, place in zip(leaves, places, strict=True)]
    kinds = tuple(describe(leaf, array, p) for leaf, array, p in zip(leaves, arrays, places, strict=True))
    program = source.program(Signature(tree, kinds, train))
    return Call(program, [a for a in arrays if a is not None], any(map(is_foreign, leaves)))


def assemble(source: ModuleSource, call: Call, arrays: Sequence[Any]) -> Any:
    """The module's outputs around the arrays that running the Program gave."""
    leaves, values = results(call, arrays), user_values(call.program)
    if not call.foreign:
        return register(unflatten(call.program.out_tree, leaves))
    for place, value in enumerate(values):
        if is_array(call.program, value):
            dtype = call.program.types[value.name].dtype
            leaves[place] = source.to_foreign(whole(leaves[place]), dtype)
    return unflatten(call.program.out_tree, leaves)


def results(call: Call, arrays: Sequence[Any]) -> list[Any]:
    """The leaves of the module's outputs: the arrays that running the Program gave, and what is known without."""
    given = iter(arrays)
    return [next(given) if is_array(call.program, value) else _size(call, value) for value in user_values(call.program)]


def user_values(program: Program) -> list[Any]:
    """What the caller gets, in leaf order, as the Program names it."""
    return [spec.value for spec in program.outputs if spec.kind == "user"]


def is_array(program: Program, value: Any) -> bool:
    """Whether an output is an array; the others are sizes and literals, known without running."""
    return isinstance(value, Ref) and isinstance(program.types.get(value.name), TensorType)


def _size(call: Call, value: Any) -> Any:
    """An output that is no tensor: a literal, or arithmetic on input sizes."""
    if not isinstance(value, Ref):
        return value
    values: dict[str, Any] = dict(zip([s.name for s in call.program.user_inputs], call.tensors, strict=True))
    for node in call.program.nodes:
        if all(ref.name in values for ref in node.refs()) and not set(node.outputs) & call.program.types.keys():
            values[node.outputs[0]] = lowering(node.op).rule(*resolve(node.args, values))
    return values[value.name]


def register(value: Any) -> Any:
    """Makes a dataclass output known to JAX, so that it can leave a jitted function as it is."""
    cls = type(value)
    if dataclasses.is_dataclass(cls) and not isinstance(value, type):
        try:
            jax.tree_util.register_pytree_node(cls, _members, lambda tree, leaves: unflatten(tree, list(leaves)))
        except ValueError:
            return value  # JAX knows it already
    return value


def _members(value: Any) -> tuple[list[Any], Any]:
    leaves, tree = flatten(value)
    return leaves, tree
