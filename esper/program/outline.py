"""The parts of a Program for people: which module's operators come one after the other, and what feeds what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from esper.program.graph import Dim, InputSpec, Node, Program, TensorType

INPUT = -1
"""In `Part.reads`: what the caller gave."""

_LINE = re.compile(r"(?P<indent> *)\((?P<name>[^()]*)\): (?:(?P<times>\d+) x )?(?P<type>[\w.]+)\(")
_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class Part:
    """Operators of one module that stand together; a module that is called twice is two parts.

    Attributes:
        name: Dotted path of the module, "" for the root.
        ops: The operators' names without their overloads, such as "conv2d", in order.
        params: torch names of the parameters and buffers it reads, tied ones by the name that holds the array.
        reads: The parts whose values it reads, by their place; `INPUT` for the caller's.
        input: Shape of the first tensor it reads that is no parameter; empty: there is none.
        output: Shape of the last tensor it makes; empty: it makes none.
    """

    name: str
    ops: tuple[str, ...]
    params: tuple[str, ...]
    reads: tuple[int, ...]
    input: tuple[Dim, ...]
    output: tuple[Dim, ...]


def outline(program: Program) -> tuple[Part, ...]:
    """The parts, in order of execution; what only does arithmetic on sizes is part of none."""
    given = {spec.name: spec for spec in program.inputs}
    maker: dict[str, int] = {}
    parts: list[Part] = []
    for name, group in groupby(filter(lambda node: _makes(node, program), program.nodes), lambda node: node.scope):
        nodes = tuple(group)
        parts.append(_part(name, nodes, program, given, maker))
        maker |= {output: len(parts) - 1 for node in nodes for output in node.outputs}
    return tuple(parts)


def module_types(description: str) -> dict[str, str]:
    r"""Class names of modules by dotted path, from what torch prints of their parent.

    >>> module_types("Net(\n  (a): Linear(in_features=1)\n  (b): ModuleList(\n    (0-1): 2 x ReLU()\n  )\n)")
    {'': 'Net', 'a': 'Linear', 'b': 'ModuleList', 'b.0': 'ReLU', 'b.1': 'ReLU'}
    """
    found: dict[str, str] = {"": description.partition("(")[0].strip()}
    open_: list[tuple[int, tuple[str, ...]]] = [(-1, ("",))]
    for line in description.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        while open_[-1][0] >= indent:
            open_.pop()
        prefixes = tuple(f"{prefix}." if prefix else "" for prefix in open_[-1][1])
        names = tuple(prefix + name for prefix in prefixes for name in _names(match["name"]))
        found |= dict.fromkeys(names, match["type"])
        open_.append((indent, names))
    return found


def _names(text: str) -> Iterable[str]:
    """A child's name; for "0-11", which torch prints for equal children, those of all of them."""
    ends = _RANGE.fullmatch(text)
    return map(str, range(int(ends[1]), int(ends[2]) + 1)) if ends else (text,)


def _part(
    name: str, nodes: tuple[Node, ...], program: Program, given: Mapping[str, InputSpec], maker: Mapping[str, int]
) -> Part:
    own = {output for node in nodes for output in node.outputs}
    read = [ref.name for node in nodes for ref in node.refs() if ref.name not in own]
    held = [given[value].target for value in read if value in given and given[value].kind != "user"]
    tensors = [value for value in read if isinstance(program.types.get(value), TensorType) or value in given]
    fed = [value for value in tensors if value not in given or given[value].kind == "user"]
    made = [output for node in nodes for output in node.outputs[:1]]
    return Part(
        name=name,
        ops=tuple(_short(node.op) for node in nodes),
        params=tuple(dict.fromkeys(held)),
        reads=tuple(dict.fromkeys(maker.get(value, INPUT) for value in fed)),
        input=next(_shapes(fed, program), ()),
        output=next(_shapes(reversed(made), program), ()),
    )


def _shapes(names: Iterable[str], program: Program) -> Iterator[tuple[Dim, ...]]:
    given = {spec.name: spec.type for spec in program.inputs}
    for name in names:
        held = program.types.get(name) or given.get(name)
        if isinstance(held, TensorType):
            yield held.shape


def _makes(node: Node, program: Program) -> bool:
    return any(isinstance(program.types.get(output), TensorType) for output in node.outputs)


def _short(op: str) -> str:
    """An operator's name as people say it.

    >>> _short("aten._native_batch_norm_legit_no_training.default"), _short("aten.add.Tensor")
    ('native_batch_norm_legit_no_training', 'add')
    """
    parts = op.split(".")
    return parts[1].strip("_") if len(parts) > 1 else op
