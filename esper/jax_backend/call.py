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
    given = iter(arrays)
    leaves: list[Any] = []
    for spec in call.program.outputs:
        if spec.kind != "user":
            continue
        if not is_array(call.program, spec.value):
            leaves.append(_size(call, spec.value))
            continue
        array = next(given)
        dtype = call.program.types[spec.value.name].dtype
        leaves.append(source.to_foreign(whole(array), dtype) if call.foreign else array)
    made = unflatten(call.program.out_tree, leaves)
    return made if call.foreign else register(made)


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
