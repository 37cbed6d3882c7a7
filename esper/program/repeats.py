"""Blocks that a Program runs several times: the same operators on other arrays, as in a network of equal layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esper.program.graph import GRAFT, Node, Program, Ref, TensorType

FEWEST = 4
"""Nodes of a block that is worth the call."""


@dataclass(frozen=True, eq=False)
class Block:
    """What equal stretches of a Program have in common, by the names of the first of them.

    Attributes:
        scope: Dotted path of the module that the first is the call of.
        nodes: In order of execution.
        reads: The values that come from outside.
        makes: The values that something outside reads; all are tensors.
    """

    scope: str
    nodes: tuple[Node, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True)
class Occurrence:
    """One of the equal stretches.

    Attributes:
        block: What it does.
        scope: Dotted path of the module that it is the call of.
        start: Place of its first node.
        stop: Place after its last.
        reads: Its names of what the block reads, in the same order.
        makes: Its names of what the block makes.
        layers: The layers in it that can grow.
    """

    block: Block
    scope: str
    start: int
    stop: int
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    layers: frozenset[str]


def repeated(program: Program) -> tuple[Occurrence, ...]:
    """Calls of modules that do the same as another such call; in order, of nested ones the outermost."""
    readers = _readers(program)
    equal: dict[tuple[Any, ...], list[_Stretch]] = defaultdict(list)
    for scope, start, stop in _calls(program.nodes):
        found = _Stretch(program.nodes[start:stop], scope, start, stop, program.types, readers)
        if found.makes and all(name in program.types for name in found.makes):
            equal[found.form].append(found)
    found = [occurrence for stretches in equal.values() if len(stretches) > 1 for occurrence in _occurrences(stretches)]
    chosen: list[Occurrence] = []
    for occurrence in sorted(found, key=lambda o: (o.start, -o.stop)):
        if not chosen or chosen[-1].stop <= occurrence.start:
            chosen.append(occurrence)
    left = {block: sum(o.block is block for o in chosen) for block in {o.block for o in chosen}}
    return tuple(occurrence for occurrence in chosen if left[occurrence.block] > 1)


def _occurrences(stretches: Sequence[_Stretch]) -> Iterator[Occurrence]:
    first = stretches[0]
    block = Block(first.scope, first.nodes, first.reads, first.makes)
    for one in stretches:
        yield Occurrence(block, one.scope, one.start, one.stop, one.reads, one.makes, one.layers)


def _calls(nodes: Sequence[Node]) -> Iterator[tuple[str, int, int]]:
    """Modules whose nodes stand together, none of them in a larger region and none running Programs.

    Yields:
        Dotted path, place of the first node, place after the last.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, node in enumerate(nodes):
        parts = node.scope.split(".") if node.scope else []
        for length in range(1, len(parts) + 1):
            places[".".join(parts[:length])].append(place)
    for scope, at in places.items():
        if len(at) >= FEWEST and at[-1] - at[0] + 1 == len(at) and all(_is_plain(nodes[place]) for place in at):
            yield scope, at[0], at[-1] + 1


def _is_plain(node: Node) -> bool:
    return not node.region and next(node.bodies(), None) is None


def _readers(program: Program) -> dict[str, list[int]]:
    """Where each value is read, in order; the Program's own outputs are read after its last node."""
    readers: dict[str, list[int]] = defaultdict(list)
    for place, node in enumerate(program.nodes):
        for ref in node.refs():
            readers[ref.name].append(place)
    for spec in program.outputs:
        if isinstance(spec.value, Ref):
            readers[spec.value.name].append(len(program.nodes))
    return readers


@dataclass
class _Stretch:
    """Nodes of one call, and the form in which equal ones are equal: values are numbered, names are relative."""

    nodes: tuple[Node, ...]
    scope: str
    start: int
    stop: int
    types: Mapping[str, TensorType]
    readers: Mapping[str, Sequence[int]]
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    form: tuple[Any, ...] = ()
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = tuple(map(self._row, self.nodes))
        made = [name for node in self.nodes for name in node.outputs]
        self.makes = tuple(name for name in made if self._is_read_later(name))
        self.reads = tuple(name for name in self._numbers if name not in set(made))
        seen = tuple(self.types.get(name) for name in self.reads)
        self.form = rows, seen, tuple(self._numbers[name] for name in self.makes)

    @property
    def layers(self) -> frozenset[str]:
        """The layers in it that can grow."""
        return frozenset(node.args[2] for node in self.nodes if node.op == GRAFT)

    def _is_read_later(self, name: str) -> bool:
        readers = self.readers.get(name, ())
        return bool(readers) and readers[-1] >= self.stop

    def _row(self, node: Node) -> tuple[Any, ...]:
        args = (*node.args[:2], self._relative(node.args[2])) if node.op == GRAFT else node.args
        given = self._value(args), tuple((name, self._value(value)) for name, value in node.kwargs)
        made = tuple(map(self._number, node.outputs))
        return node.op, given, made, node.multiple, self._relative(node.scope)

    def _relative(self, path: str) -> str:
        return path.removeprefix(self.scope)

    def _value(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref, self._number(value.name)
        if isinstance(value, tuple):
            return tuple(map(self._value, value))
        return type(value), repr(value)  # 1, 1.0 and True are three different arguments, and so are 0.0 and -0.0

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))
