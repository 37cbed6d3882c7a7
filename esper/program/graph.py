"""The Program and its parts: frozen, hashable by fingerprint, plain data.

A Program is what one call of a module does: a list of nodes in order of execution, each an ATen
operator by its full overload name, with values named by strings. Nothing here executes anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from esper.program.sizes import holds
from esper.program.tree import Tree

if TYPE_CHECKING:
    from esper.program.repeats import Occurrence

Part = TypeVar("Part")
Dim = int | str  # a fixed size, or the name of a symbolic one ("s0"), or an expression of such ("2*s0")


GRAFT = "esper.graft.default"
"""The operator that marks where kernels join a layer: (output, input, name of the layer) to the output."""


class BindError(ValueError):
    """Inputs that a Program does not cover: another signature is needed."""


@dataclass(frozen=True)
class Ref:
    """A value of the Program, by name."""

    name: str


@dataclass(frozen=True)
class DType:
    """A dtype as an argument, by torch's name without the prefix: "float32", "int64", "bool"."""

    name: str


@dataclass(frozen=True)
class TensorType:
    """Shape and dtype of a tensor; symbolic sizes are strings."""

    shape: tuple[Dim, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Node:
    """One operator call.

    Attributes:
        op: Full overload name, such as "aten.linear.default".
        args: Refs, literals, Programs (the bodies of operators that run some) and (nested) tuples of them.
        kwargs: Pairs of name and value.
        outputs: The names this node defines; several for operators that return several tensors.
        multiple: Whether the operator returns a sequence (even of one).
        scope: Dotted path of the module in the user's model, "" for the root.
        source: "file.py:line" in the user's code.
        region: Nodes of one region stand together; a backward computes them again instead of keeping what they
            made. "" for nodes of none.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()
    outputs: tuple[str, ...] = ()
    multiple: bool = False
    scope: str = ""
    source: str = ""
    region: str = ""

    def refs(self) -> Iterator[Ref]:
        """Every value this node reads, in order."""
        yield from _found(Ref, (self.args, tuple(value for _, value in self.kwargs)))

    def bodies(self) -> Iterator[Program]:
        """Every Program this node runs: branches, loop bodies, backwards."""
        yield from _found(Program, (self.args, tuple(value for _, value in self.kwargs)))


@dataclass(frozen=True)
class InputSpec:
    """A value the Program starts with.

    Attributes:
        name: The value's name in the Program.
        kind: "param", "buffer", "constant" or "user".
        target: torch name of a param or buffer, constant's name, or the leaf's place in the call.
        type: Shape and dtype.
    """

    name: str
    kind: str
    target: str
    type: TensorType


@dataclass(frozen=True)
class OutputSpec:
    """A value the Program ends with.

    Attributes:
        kind: "user", "buffer", or "param" for a parameter that the forward writes into.
        value: A Ref, or a literal for outputs that are not tensors.
        target: The buffer's or parameter's torch name, else "".
    """

    kind: str
    value: Any
    target: str = ""


@dataclass(frozen=True, eq=False)
class Program:
    """What one call of a module does, for one signature.

    Attributes:
        inputs: Params, buffers and constants by name, then the user's tensors in leaf order.
        nodes: In order of execution.
        outputs: Buffer and parameter updates and the user's outputs.
        out_tree: Structure of the user's outputs.
        types: Shape and dtype of each tensor value.
        ranges: Valid range (low, high or None) of each symbolic size.
        guards: Conditions on input sizes under which the capture holds, such as "size(0, 0) % 2 == 0";
            `size(i, d)` is dimension d of the user's i-th tensor.
        aliases: Tied names: {other torch name: the name that holds the array}.
        train: Whether it was captured in training mode.
    """

    inputs: tuple[InputSpec, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[OutputSpec, ...]
    out_tree: Tree
    types: Mapping[str, TensorType] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    train: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical JSON form."""
        from esper.program.codec import dumps

        return hashlib.sha256(dumps(self).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and (self is other or self.fingerprint == other.fingerprint)

    def __str__(self) -> str:
        from esper.program.printing import pretty

        return pretty(self)

    __repr__ = __str__

    @cached_property
    def user_inputs(self) -> tuple[InputSpec, ...]:
        """The specs of the tensors a caller gives, in leaf order."""
        return tuple(spec for spec in self.inputs if spec.kind == "user")

    @cached_property
    def ops(self) -> dict[str, int]:
        """How often each operator occurs."""
        counts: dict[str, int] = {}
        for node in self.walk():
            counts[node.op] = counts.get(node.op, 0) + 1
        return dict(sorted(counts.items()))

    @cached_property
    def repeated(self) -> tuple[Occurrence, ...]:
        """The calls of modules that do the same as others, in order."""
        from esper.program.repeats import repeated

        return repeated(self)

    def walk(self) -> Iterator[Node]:
        """Every node, those of bodies included."""
        for node in self.nodes:
            yield node
            for body in node.bodies():
                yield from body.walk()

    def bind(self, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
        """Sizes of the symbols for these input shapes.

        Raises:
            BindError: The shapes are outside what this Program was captured for.
        """
        bound: dict[str, int] = {}
        specs = self.user_inputs
        if len(specs) != len(shapes):
            raise BindError(f"{len(specs)} tensors expected, {len(shapes)} given")
        for spec, shape in zip(specs, shapes, strict=True):
            if len(shape) != len(spec.type.shape):
                raise BindError(f"{spec.target}: {len(spec.type.shape)} dimensions expected, shape is {shape}")
            for want, size in zip(spec.type.shape, shape, strict=True):
                if (bound.setdefault(want, size) if isinstance(want, str) else want) != size:
                    raise BindError(f"{spec.target}: {spec.type} does not fit shape {shape}")
        self._check_sizes(bound, shapes)
        return bound

    def _check_sizes(self, bound: Mapping[str, int], shapes: Sequence[tuple[int, ...]]) -> None:
        for symbol, (low, high) in self.ranges.items():
            if symbol in bound and not (low <= bound[symbol] and (high is None or bound[symbol] <= high)):
                raise BindError(f"{symbol} = {bound[symbol]} is outside [{low}, {high}]")
        for guard in self.guards:
            if not holds(guard, shapes):
                raise BindError(f"the capture assumed {guard}")


def _found(kind: type[Part], value: Any) -> Iterator[Part]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _found(kind, item)
