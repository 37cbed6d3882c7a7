"""Cutting a part out of a Program: what lies between some values and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.program.graph import InputSpec, Node, OutputSpec, Program, Ref, TensorType
from esper.program.tree import flatten


def between(
    nodes: Sequence[Node], types: Mapping[str, TensorType], inputs: Sequence[Ref], outputs: Sequence[Ref]
) -> tuple[Program, tuple[Ref, ...]]:
    """The nodes that lead from `inputs` to `outputs`, as a Program.

    Args:
        nodes: In order of execution.
        types: Shape and dtype of each tensor value.
        inputs: The Program's first inputs.
        outputs: What it returns.

    Returns:
        The Program, and the values it reads besides, which are its further inputs.
    """
    reached = {ref.name for ref in inputs}
    forward = []
    for node in nodes:
        if reached.intersection(ref.name for ref in node.refs()) and not reached.intersection(node.outputs):
            forward.append(node)
            reached.update(node.outputs)
    wanted = {ref.name for ref in outputs}
    kept: list[Node] = []
    for node in reversed(forward):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(ref.name for ref in node.refs())
    kept.reverse()
    known = {ref.name for ref in inputs} | {name for node in kept for name in node.outputs}
    read = [ref for node in kept for ref in node.refs()] + list(outputs)
    free = tuple(dict.fromkeys(ref for ref in read if ref.name not in known))
    specs = [
        InputSpec(ref.name, "user", ref.name, types.get(ref.name, TensorType((), "int64")))
        for ref in dict.fromkeys((*inputs, *free))
    ]
    made = {name: types[name] for name in known if name in types}
    program = Program(
        inputs=tuple(specs),
        nodes=tuple(kept),
        outputs=tuple(OutputSpec("user", ref) for ref in outputs),
        out_tree=flatten([0] * len(outputs))[1],
        types={**made, **{spec.name: spec.type for spec in specs}},
    )
    return program, free
