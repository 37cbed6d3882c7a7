"""Whether two Programs do the same where both could run: a capture for any batch, and one for a batch of one size.

Torch excludes sizes from a capture for what it knows of strides and broadcasting there, mostly 1. The capture at such
a size has its numbers where the other does arithmetic on sizes, and lacks slices and expansions that change nothing.
Both are brought into one form: sizes are computed, what changes nothing is left out, and equal values get one number.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from esper.program.graph import DType, Node, Program, Ref, TensorType

_Shape = tuple[int, ...]
_Known = dict[tuple[Any, ...], int]
_SIZE, _ARITHMETIC = "aten.sym_size.int", "python.operator."
# Where these return the shape that they are given, they return the values that they are given.
_RESHAPES = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.expand.default")
_COPIES = ("aten.alias.default", "aten.slice.Tensor")
_WHOLE = 2**63 - 1


def agree(program: Program, other: Program, shapes: Sequence[_Shape]) -> bool:
    """Whether both compute the same of inputs of these shapes, as far as that can be told from their operators."""
    known: _Known = {}
    try:
        return _results(program, shapes, known) == _results(other, shapes, known)
    except _UnknownError:
        return False


class _UnknownError(Exception):
    """A size that cannot be told."""


def _results(program: Program, shapes: Sequence[_Shape], known: _Known) -> tuple[Any, ...]:
    """What the Program returns and writes, as numbers of values."""
    sizes = _symbols(program, shapes)
    values: dict[str, Any] = {}
    types = {name: _fixed(found, sizes) for name, found in program.types.items()}
    given = iter(shapes)
    for spec in program.inputs:
        types[spec.name] = next(given) if spec.kind == "user" else _fixed(spec.type, sizes)
        place = program.user_inputs.index(spec) if spec.kind == "user" else spec.target
        values[spec.name] = _numbered(("input", spec.kind, place), known)
    for node in program.nodes:
        _follow(node, values, types, known)
    outputs = [(spec.kind, spec.target, _plain(spec.value, values)) for spec in program.outputs]
    return program.out_tree, tuple(outputs)


def _symbols(program: Program, shapes: Sequence[_Shape]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec, shape in zip(program.user_inputs, shapes, strict=True):
        sizes |= {dim: size for dim, size in zip(spec.type.shape, shape, strict=True) if isinstance(dim, str)}
    return sizes


def _follow(node: Node, values: dict[str, Any], types: Mapping[str, _Shape | None], known: _Known) -> None:
    """Numbers what a node makes."""
    first = next(node.refs(), None)
    if node.op == _SIZE and first is not None:
        values[node.outputs[0]] = ("size", _shape(types, first.name)[node.args[1]])
    elif node.op.startswith(_ARITHMETIC):
        values[node.outputs[0]] = ("size", _computed(node, values))
    elif first is not None and len(node.outputs) == 1 and _changes_nothing(node, first, types):
        values[node.outputs[0]] = values[first.name]
    else:
        args = node.args if node.op not in _RESHAPES else (node.args[0], _shape(types, node.outputs[0]))
        shapes = tuple(_shape(types, name) for name in node.outputs if name in types)  # a squeeze reads its input's
        key = (node.op, _plain(args, values), _plain(node.kwargs, values), shapes)
        for place, name in enumerate(node.outputs):
            values[name] = _numbered((key, place), known)


def _changes_nothing(node: Node, first: Ref, types: Mapping[str, _Shape | None]) -> bool:
    if node.op not in (*_RESHAPES, *_COPIES) or node.args[0] != first:
        return False
    whole = node.op != "aten.slice.Tensor" or (node.args[2:] in ((0, _WHOLE), (0, _WHOLE, 1)))
    return whole and _shape(types, first.name) == _shape(types, node.outputs[0])


def _computed(node: Node, values: Mapping[str, Any]) -> Any:
    numbers = [_plain(arg, values) for arg in node.args]
    if not all(isinstance(number, int) for number in numbers):
        raise _UnknownError(node.op)
    return getattr(operator, node.op.removeprefix(_ARITHMETIC))(*numbers)


def _plain(value: Any, values: Mapping[str, Any]) -> Any:
    """An argument, with numbers for values; it also says of what type each literal is, since 1 == 1.0 == True."""
    if isinstance(value, Ref):
        found = values[value.name]
        return found[1] if isinstance(found, tuple) else Ref(str(found))
    if isinstance(value, tuple):
        return tuple(_plain(item, values) for item in value)
    if isinstance(value, Program):
        return value.fingerprint
    return value if isinstance(value, int | str | DType) and not isinstance(value, bool) else (type(value), value)


def _numbered(key: tuple[Any, ...], known: _Known) -> int:
    return known.setdefault(key, len(known))


def _shape(types: Mapping[str, _Shape | None], name: str) -> _Shape:
    found = types.get(name)
    if found is None:
        raise _UnknownError(name)
    return found


def _fixed(type: TensorType, sizes: Mapping[str, int]) -> _Shape | None:
    """The shape in numbers, None where a size is an expression that is more than products and sums."""
    try:
        return tuple(dim if isinstance(dim, int) else _value(dim, sizes) for dim in type.shape)
    except ValueError:
        return None


def _value(expression: str, sizes: Mapping[str, int]) -> int:
    """A sum of products of symbols and numbers."""
    total = 0
    for term in expression.replace(" ", "").split("+"):
        product = 1
        for factor in term.split("*"):
            product *= sizes[factor] if factor in sizes else int(factor)
        total += product
    return total
