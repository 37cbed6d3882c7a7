"""Operators that read a tensor's memory rather than its elements, which a Program knows only in their order."""

from __future__ import annotations

import torch
from torch.fx import Node as FxNode

from esper.errors import RefusedError
from esper.torch_frontend.places import user_line

_aten = torch.ops.aten
_READ_MEMORY = frozenset(
    (
        *(_aten.as_strided.default, _aten.as_strided_copy.default, _aten.as_strided_scatter.default),
        *(_aten.resize.default, _aten.resize_as.default),
    )
)


def check_memory(fx_node: FxNode) -> None:
    """Raises RefusedError where such an operator meets a tensor whose elements do not lie in memory in their order."""
    if fx_node.target not in _READ_MEMORY:
        return
    source = fx_node.args[0]
    held = source.meta.get("val") if isinstance(source, FxNode) else None
    if isinstance(held, torch.Tensor) and not (held.is_contiguous() and held.storage_offset() == 0):
        raise RefusedError(
            f"{fx_node.target} at {user_line(fx_node.meta.get('stack_trace') or '')} reads the memory of a view "
            f"of shape {tuple(held.shape)} and strides {held.stride()}: call .contiguous() on it first, or apply it "
            "to the tensor that is viewed"
        )
