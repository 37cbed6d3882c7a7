"""What a layer takes and gives, as the captures of a model show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from esper.program.graph import GRAFT, Program, TensorType
from esper.program.recipe import Captured
from esper.program.sizes import value


def fed_to(captures: Sequence[Captured], layer: str) -> Iterator[tuple[TensorType, TensorType]]:
    """What a layer takes and gives in each of the calls, at the sizes that were seen."""
    for signature, program in captures:
        yield from _fed_in(program, layer, program.bind(signature.shapes))


def _fed_in(program: Program, layer: str, bound: Mapping[str, int]) -> Iterator[tuple[TensorType, TensorType]]:
    for node in program.nodes:
        if node.op == GRAFT and node.args[2] == layer:
            output, input = (program.types[ref.name] for ref in node.args[:2])
            yield _fixed(input, bound), _fixed(output, bound)
        for body in node.bodies():
            yield from _fed_in(body, layer, bound)


def _fixed(kind: TensorType, bound: Mapping[str, int]) -> TensorType:
    return TensorType(tuple(size if isinstance(size, int) else value(size, bound) for size in kind.shape), kind.dtype)
