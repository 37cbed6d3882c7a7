"""A Program as text a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esper.program.graph import DType, Node, Program, Ref


def pretty(program: Program) -> str:
    """The whole Program, a line a value, modules as comments between the nodes."""
    return "\n".join(_lines(program))


def _lines(program: Program) -> Iterator[str]:
    mode = "train" if program.train else "eval"
    yield f"Program ({mode}, {len(program.nodes)} nodes)"
    for spec in program.inputs:
        yield f"  {spec.kind:<8} %{spec.name}: {spec.type}  {spec.target}"
    heading: tuple[str, str] | None = None
    for node in program.nodes:
        if (node.scope, node.region) != heading:
            heading = node.scope, node.region
            yield f"  # {node.scope or '(root)'}" + (f", {node.region}" if node.region else "")
        yield f"  {_node(program, node)}"
        for body in node.bodies():
            yield from (f"    {line}" for line in _lines(body))
    for spec in program.outputs:
        place = "return" if spec.kind == "user" else f"{spec.kind} {spec.target}"
        yield f"  {place}: {_value(spec.value)}"
    for symbol, (low, high) in program.ranges.items():
        yield f"  where {low} <= {symbol}" + (f" <= {high}" if high is not None else "")
    for guard in program.guards:
        yield f"  where {guard}"


def _node(program: Program, node: Node) -> str:
    given = [_value(arg) for arg in node.args] + [f"{key}={_value(value)}" for key, value in node.kwargs]
    made = ", ".join(_typed(program, name) for name in node.outputs)
    source = f"  # {node.source}" if node.source else ""
    return f"{made} = {node.op}({', '.join(given)}){source}"


def _typed(program: Program, name: str) -> str:
    found = program.types.get(name)
    return f"%{name}: {found}" if found else f"%{name}"


def _value(value: Any) -> str:
    match value:
        case Ref(name):
            return f"%{name}"
        case DType(name):
            return name
        case Program():
            return "<Program below>"
        case tuple():
            return f"({', '.join(map(_value, value))})"
    return repr(value)
