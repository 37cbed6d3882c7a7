"""PyTorch's own decompositions, for the operators that have no lowering."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.export import ExportedProgram

from esper.torch_frontend.translate import op_name

Supported = Callable[[str], bool]
Decomposition = Callable[..., Any]


def decompositions(exported: ExportedProgram, supported: Supported) -> dict[Any, Decomposition]:
    """The decompositions to apply to a capture, so that what is left has lowerings as far as possible.

    Args:
        exported: A capture.
        supported: Whether an operator, by its full overload name, has a lowering.
    """
    known = {
        op: rule
        for op, rule in decomposition_table.items()
        if isinstance(op, torch._ops.OpOverload) and not supported(op_name(op))
    }
    composites = {op: _composite(op) for op in _overloads(exported) if op not in known and not supported(op_name(op))}
    tracked = {torch.ops.aten.instance_norm.default: _tracked_instance_norm}
    return {**known, **{op: rule for op, rule in composites.items() if rule is not None}, **tracked}


def _overloads(exported: ExportedProgram) -> Iterator[torch._ops.OpOverload]:
    for part in exported.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            if isinstance(node.target, torch._ops.OpOverload):
                yield node.target


def _composite(op: torch._ops.OpOverload) -> Decomposition | None:
    """What a composite operator is made of; None for operators that are not composite."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    if not op.has_kernel_for_dispatch_key(key):
        return None

    def decompose(*args: Any, **kwargs: Any) -> Any:
        # Not `op.decompose`: during a decomposition it finds this very function, for ever.
        return op._op_dk(key, *args, **kwargs)

    return decompose


def _tracked_instance_norm(*args: Any, **kwargs: Any) -> Any:
    """Instance norm that moves running statistics: whole, it would lose the update."""
    running_mean, use_input_stats = args[3], args[5]
    if running_mean is None or not use_input_stats:
        return NotImplemented
    decompose = _composite(torch.ops.aten.instance_norm.default)
    return NotImplemented if decompose is None else decompose(*args, **kwargs)
