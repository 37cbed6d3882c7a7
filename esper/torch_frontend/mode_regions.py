"""Regions under `no_grad` in a capture: torch loses those under autocast, and those with operators that hold bodies."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.fx import GraphModule, Node

_SET_GRAD: Any = importlib.import_module("torch._export.passes.replace_set_grad_with_hop_pass")
_AUTOCAST: Any = importlib.import_module("torch._export.passes.replace_autocast_with_hop_pass")
_ENTER: Any = torch.amp.autocast_mode._enter_autocast
_FIRST: Callable[..., Node | None] = _SET_GRAD.nodes_first


@contextmanager
def whole_regions() -> Iterator[None]:
    """While open, such regions are found, and keep what they hold."""
    with (
        patch.object(_SET_GRAD, "nodes_first", _first_within_autocast),
        patch.object(_AUTOCAST, "nodes_first", _first_operator),
        patch.object(GraphModule, "delete_all_unused_submodules", _delete_unused),
    ):
        yield


def _first_operator(nodes: Any, condition: Callable[[Node], bool]) -> Node | None:
    """A region is known by the operator it begins with; a body, which is read before that, is none."""
    return _FIRST(nodes, lambda node: node.op != "get_attr" and condition(node))


def _first_within_autocast(nodes: Any, condition: Callable[[Node], bool]) -> Node | None:
    """Cutting a region out of one under autocast puts the autocast first."""
    return _first_operator(nodes, lambda node: node.target is not _ENTER and condition(node))


def _delete_unused(self: GraphModule) -> None:
    """Torch deletes what a region, being read as an attribute, holds."""
    used = {str(node.target).split(".")[0] for node in self.graph.nodes if node.op in ("get_attr", "call_module")}
    for name in [name for name, _ in self.named_children() if name not in used]:
        self.delete_submodule(name)
