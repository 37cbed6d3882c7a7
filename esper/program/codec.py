"""Programs as JSON: canonical text, a schema version, and nothing that could execute."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from esper.errors import ProgramError
from esper.program.graph import DType, InputSpec, Node, OutputSpec, Program, Ref, TensorType
from esper.program.tree import Tree

SCHEMA_VERSION = 1


def dumps(program: Program) -> str:
    """Canonical JSON: equal Programs give equal text."""
    return json.dumps(to_body(program), sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_body(program: Program) -> dict[str, Any]:
    """A Program as what JSON can hold."""
    return {
        "schema": SCHEMA_VERSION,
        "train": program.train,
        "inputs": [[s.name, s.kind, s.target, _type(s.type)] for s in program.inputs],
        "nodes": [_node(node) for node in program.nodes],
        "outputs": [[s.kind, _literal(s.value), s.target] for s in program.outputs],
        "out_tree": _tree(program.out_tree),
        "types": {name: _type(found) for name, found in program.types.items()},
        "ranges": {symbol: list(limits) for symbol, limits in program.ranges.items()},
        "guards": list(program.guards),
        "aliases": dict(program.aliases),
    }


def loads(text: str) -> Program:
    """Reads what `dumps` wrote.

    Raises:
        ProgramError: The text is no Program, or of a schema this version does not read.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"not a Program: {error}") from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA_VERSION:
        found = body.get("schema") if isinstance(body, dict) else type(body).__name__
        raise ProgramError(f"Program schema {SCHEMA_VERSION} expected, found {found!r}")
    try:
        return from_body(body)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ProgramError(f"not a well-formed Program: {error}") from None


def from_body(body: dict[str, Any]) -> Program:
    """A Program from what `to_body` gave; malformed ones raise what Python raises."""
    return Program(
        inputs=tuple(InputSpec(n, k, t, _read_type(found)) for n, k, t, found in body["inputs"]),
        nodes=tuple(_read_node(node) for node in body["nodes"]),
        outputs=tuple(OutputSpec(kind, _read(value), target) for kind, value, target in body["outputs"]),
        out_tree=_read_tree(body["out_tree"]),
        types={name: _read_type(found) for name, found in body["types"].items()},
        ranges={symbol: (low, high) for symbol, (low, high) in body["ranges"].items()},
        guards=tuple(body["guards"]),
        aliases=dict(body["aliases"]),
        train=body["train"],
    )


def _type(found: TensorType) -> list[Any]:
    return [list(found.shape), found.dtype]


def _read_type(found: list[Any]) -> TensorType:
    shape, dtype = found
    return TensorType(tuple(shape), dtype)


def _node(node: Node) -> dict[str, Any]:
    region = {"region": node.region} if node.region else {}
    return {
        **region,
        "op": node.op,
        "args": _literal(node.args),
        "kwargs": [[key, _literal(value)] for key, value in node.kwargs],
        "outputs": list(node.outputs),
        "multiple": node.multiple,
        "scope": node.scope,
        "source": node.source,
    }


def _read_node(body: dict[str, Any]) -> Node:
    return Node(
        op=body["op"],
        args=_read(body["args"]),
        kwargs=tuple((key, _read(value)) for key, value in body["kwargs"]),
        outputs=tuple(body["outputs"]),
        multiple=body["multiple"],
        scope=body["scope"],
        source=body["source"],
        region=body.get("region", ""),
    )


def _literal(value: Any) -> Any:
    match value:
        case Ref(name):
            return {"ref": name}
        case DType(name):
            return {"dtype": name}
        case Program():
            return {"program": to_body(value)}
        case tuple():
            return [_literal(item) for item in value]
        case complex():
            return {"complex": [_literal(value.real), _literal(value.imag)]}
        case float() if not math.isfinite(value):
            return {"float": repr(value)}
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "ref": Ref,
    "dtype": DType,
    "program": lambda found: from_body(found),
    "complex": lambda parts: complex(*(_read(part) for part in parts)),
    "float": float,
}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        return _READERS[kind](inner)
    return value


def _tree(tree: Tree) -> Any:
    return [tree.kind, [_tree(child) for child in tree.children], [_literal(k) for k in tree.keys], tree.path]


def _read_tree(body: Any) -> Tree:
    kind, children, keys, path = body
    return Tree(kind, tuple(_read_tree(child) for child in children), tuple(_read(k) for k in keys), path)
