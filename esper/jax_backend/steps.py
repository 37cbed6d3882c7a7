"""In which steps a Program runs: node by node, a block that is computed again, or a block that others are equal to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from esper.jax_backend.remat import NOTHING, Remat
from esper.program import Node, Occurrence, Program, Ref


@dataclass(frozen=True)
class Step:
    """Nodes that run together.

    Attributes:
        nodes: In order of execution.
        policy: What a backward keeps of the values between them, if it computes the others again; else "".
        repeats: The repeated block that they are; None: they are none.
    """

    nodes: tuple[Node, ...]
    policy: str = ""
    repeats: Occurrence | None = None


def steps(program: Program, remat: Remat | None, grown: Collection[str], share_blocks: bool) -> list[Step]:
    """The steps in order.

    Args:
        program: What runs.
        remat: The blocks whose insides a backward computes again; it leaves nothing for `share_blocks` to do.
        grown: Layers with kernels: a block that holds one is equal to no other.
        share_blocks: Whether equal blocks are traced once.
    """
    found: list[Step] = []
    at = 0
    for block in program.repeated if share_blocks and remat is None else ():
        if block.layers.isdisjoint(grown):
            found += _one_by_one(program.nodes[at : block.start], remat)
            found.append(Step(program.nodes[block.start : block.stop], repeats=block))
            at = block.stop
    return [*found, *_one_by_one(program.nodes[at:], remat)]


def _one_by_one(nodes: Sequence[Node], remat: Remat | None) -> Iterator[Step]:
    """Each node a step, but for those of regions that are computed again."""

    def place(node: Node) -> tuple[str, str]:  # of nested ones the outermost
        block = remat.block(node.scope) if remat else ""
        return block, "" if block else node.region

    for (block, region), group in groupby(nodes, place):
        if block or region:
            yield Step(tuple(group), remat.policy if remat and block else NOTHING)
        else:
            yield from (Step((node,)) for node in group)


def last_uses(program: Program, found: Sequence[Step]) -> list[list[str]]:
    """For each step, the values nobody reads after it."""
    kept = {spec.value.name for spec in program.outputs if isinstance(spec.value, Ref)}
    last: dict[str, int] = {}
    for place, step in enumerate(found):
        for node in step.nodes:
            last |= dict.fromkeys((*node.outputs, *(ref.name for ref in node.refs())), place)
    freed: list[list[str]] = [[] for _ in found]
    for name, place in last.items():
        if name not in kept:
            freed[place].append(name)
    return freed
