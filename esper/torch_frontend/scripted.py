"""Scripted and traced modules: the tensors of a copy, attributes that C++ holds, and graphs that lose their meaning.

A capture runs such a module as it is, its operators one by one. It differs from others in that its tensors
and attributes live in C++, where a copy, and what a forward changes, go unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.jit import ScriptModule

from esper.errors import RefusedError

_MODES = ("grad_mode", "autocast")


def adopt_tensors(module: nn.Module, copied: nn.Module, memo: Mapping[int, Any]) -> None:
    """Gives the scripted parts of a copy the tensors that `memo` has for those of `module`, as deepcopy does not."""
    twins = dict(copied.named_modules(remove_duplicate=False))
    for name, sub in _scripted(module):
        for held, own in ((sub._parameters, twins[name]._parameters), (sub._buffers, twins[name]._buffers)):
            for key, tensor in list(held.items()):
                own[key] = memo[id(tensor)]


def attributes(module: nn.Module) -> dict[str, Any]:
    """What a scripted module holds besides tensors that are registered and other modules; nothing of a plain one."""
    if not isinstance(module, ScriptModule):
        return {}
    concrete: Any = module._concrete_type
    registered = {*dict(module._parameters.items()), *dict(module._buffers.items())}
    return {name: getattr(module, name) for name in concrete.get_attributes() if name not in registered}


@contextmanager
def tensors_stay(module: nn.Module) -> Iterator[None]:
    """Puts the tensor attributes of scripted parts back at the end.

    Raises:
        RefusedError: The forward assigned one.
    """
    before = [(name, sub, _tensors(sub)) for name, sub in _scripted(module)]
    assigned = []
    try:
        yield
    finally:
        for name, sub, tensors in before:
            now = _tensors(sub)
            for key in [key for key, tensor in tensors.items() if now.get(key) is not tensor]:
                setattr(sub, key, tensors[key])
                assigned.append(f"{name}.{key}")
    if assigned:
        raise RefusedError(f"the forward assigns the tensors {', '.join(assigned)}: make them buffers")


def one_by_one() -> Any:
    """While open, a script that has no plan yet runs operator by operator."""
    return torch.jit.optimized_execution(False)  # pyright: ignore[reportPrivateImportUsage]


def forget_plans(module: nn.Module) -> None:
    """Forgets how scripts were optimised, which is by operators of their own; copies of a script share its plans."""
    for _, sub in _scripted(module):
        methods: Any = sub._c
        for name in methods._method_names():
            methods._get_method(name)._debug_flush_compilation_cache()


def refuse_modes(module: nn.Module) -> None:
    """Raises RefusedError where a script sets what the graph of a capture does not show."""
    for name, sub in _scripted(module):
        methods: Any = sub._c
        for method in methods._method_names():
            found = _lost(methods._get_method(method).inlined_graph)
            if found:
                raise RefusedError(
                    f"the scripted module {name or '(root)'} ({sub.original_name}) uses {found} in its {method}, which "
                    "would be lost: put the module itself there instead of its script"
                )


def _lost(graph: Any) -> str:
    """What a script's graph does that goes unseen, "" if nothing."""
    for node in graph.findAllNodes("prim::Enter"):
        kind = str(next(iter(node.inputs())).type())
        if any(mode in kind for mode in _MODES):
            return kind.rpartition(".")[2]
    return "torch.manual_seed" if graph.findAllNodes("aten::manual_seed") else ""


def _tensors(module: ScriptModule) -> dict[str, torch.Tensor]:
    return {name: value for name, value in attributes(module).items() if isinstance(value, torch.Tensor)}


def _scripted(module: nn.Module) -> Iterator[tuple[str, ScriptModule]]:
    for name, sub in module.named_modules(remove_duplicate=False):
        if isinstance(sub, ScriptModule):
            yield name, sub
