"""Tensors with several names: tied parameters, a module used twice, one buffer registered twice."""

from __future__ import annotations

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node


def aliases(module: nn.Module) -> dict[str, str]:
    """Tied parameters and buffers: {each further name: the first name}."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            owner = first.setdefault(id(tensor), name)
            if owner != name:
                tied[name] = owner
    return tied


def merge(captured: ExportedProgram, tied: dict[str, str], prefix: str) -> None:
    """Leaves one input for each tensor of a capture: where it is written into, two of them would part.

    Args:
        captured: Rewritten in place.
        tied: From `aliases`.
        prefix: What stands before the names in the capture.
    """
    graph, specs = captured.graph_module.graph, captured.graph_signature.input_specs
    nodes = {node.name: node for node in graph.find_nodes(op="placeholder")}
    named: dict[str, Node] = {spec.target: nodes[spec.arg.name] for spec in specs if spec.target}
    for spec in list(specs):
        owner = named.get(f"{prefix}.{tied.get((spec.target or '').removeprefix(f'{prefix}.'))}")
        if owner is not None:
            held = nodes[spec.arg.name]
            held.replace_all_uses_with(owner)
            graph.erase_node(held)
            specs.remove(spec)
    captured.graph_module.recompile()
