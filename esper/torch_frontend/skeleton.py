"""A copy of the user's module that keeps its classes, attributes and hooks but none of its memory.

Tracing and rebuilding read structure, not values: large parameters become allocations that nobody
touches, which cost address space and no memory. The user's module is never held, nor changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from esper.errors import WrapError


def skeleton(module: nn.Module) -> nn.Module:
    """A deep copy of `module` with untouched memory behind its parameters and buffers.

    Raises:
        WrapError: The module holds something that cannot be copied.
    """
    memo: dict[int, object] = {}
    for tensor in _registered(module):
        memo[id(tensor)] = _hollow(tensor)
    for tensor in _computed(module):
        memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # deepcopy runs the user's own code, which may raise anything
        raise WrapError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}); "
            "wrap keeps a copy of the module's structure: give the attribute that fails a __deepcopy__, or remove it"
        ) from error


def modes(module: nn.Module) -> dict[str, bool]:
    """Training flag of every submodule."""
    return {name: sub.training for name, sub in module.named_modules(remove_duplicate=False)}


def set_mode(module: nn.Module, train: bool, modes_at_wrap: dict[str, bool]) -> None:
    """Puts every submodule in training or evaluation mode.

    A module that was wrapped in training mode keeps the flags it had, submodule by submodule, so a part
    that the user had put in evaluation mode stays there.
    """
    module.train(train)
    if train and modes_at_wrap.get("", False):
        for name, sub in module.named_modules(remove_duplicate=False):
            sub.training = modes_at_wrap.get(name, sub.training)


def _registered(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    if is_lazy(tensor):
        raise WrapError("the module has lazy parameters that are not initialised: call it once before wrapping it")
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    if not isinstance(tensor, nn.Parameter):
        return empty
    return nn.Parameter(empty, requires_grad=tensor.requires_grad)


def _computed(module: nn.Module) -> Iterator[torch.Tensor]:
    """Tensor attributes with a history, which deepcopy refuses."""
    for sub in module.modules():
        for value in vars(sub).values():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                yield value
