"""A copy of the user's module that keeps its classes, attributes and hooks but none of its memory.

Tracing and rebuilding read structure, not values: large parameters become allocations that nobody
touches, which cost address space and no memory. The user's module is never held, nor changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.parameter import is_lazy

from esper.errors import DTypeError, WrapError
from esper.torch_frontend import scripted

_OF_TORCH = frozenset(vars(nn.Module()))  # what every module has; hooks and tensors are not the forward's to change


def skeleton(module: nn.Module) -> nn.Module:
    """A deep copy of `module` with untouched memory behind its parameters and buffers.

    Raises:
        WrapError: The module holds something that cannot be copied.
    """
    memo: dict[int, object] = {}
    for name, parameter in module.named_parameters():
        memo[id(parameter)] = nn.Parameter(_hollow(name, parameter), requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        memo[id(buffer)] = _hollow(name, buffer)
    for tensor in _computed(module):
        memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        copied = copy.deepcopy(module, memo)
        _rebind(copied, memo)
        scripted.adopt_tensors(module, copied, memo)
        return copied
    except Exception as error:  # deepcopy runs the user's own code, which may raise anything
        raise WrapError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}); "
            "wrap keeps a copy of the module's structure: give the attribute that fails a __deepcopy__, or remove it"
        ) from error


def _rebind(copied: nn.Module, memo: dict[int, object]) -> None:
    """Makes hooks and functions held by the copy close over the copy, where deepcopy leaves them with the original."""
    for sub in copied.modules():
        masks = [vars(value) for value in vars(sub).values() if isinstance(value, BlockMask)]
        holders: tuple[Any, ...] = (vars(sub), sub._forward_hooks, sub._forward_pre_hooks, *masks)
        for holder in holders:
            for key, value in list(holder.items()):
                if isinstance(value, FunctionType):
                    holder[key] = _rebound(value, memo)


def _rebound(function: FunctionType, memo: dict[int, object]) -> FunctionType:
    known = memo.get(id(function))
    if isinstance(known, FunctionType):
        return known
    memo[id(function)] = function  # a function may close over itself
    cells = [cell for cell in function.__closure__ or () if _content(cell) is not None]
    if not any(isinstance(_content(cell), FunctionType) or id(_content(cell)) in memo for cell in cells):
        return function
    closure = tuple(_moved(cell, memo) for cell in function.__closure__ or ())
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    memo[id(function)] = made
    return made


def _content(cell: CellType) -> object:
    """What a closure's cell holds; None for a cell that is not filled yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _moved(cell: CellType, memo: dict[int, object]) -> CellType:
    held = _content(cell)
    if isinstance(held, FunctionType):
        return CellType(_rebound(held, memo))
    return CellType(memo[id(held)]) if held is not None and id(held) in memo else cell


def modes(module: nn.Module) -> dict[str, bool]:
    """Training flag of every submodule; a script that was frozen has none."""
    named = module.named_modules(remove_duplicate=False)
    return {name: sub.training for name, sub in named if hasattr(sub, "training")}


def set_mode(module: nn.Module, train: bool, modes_at_wrap: dict[str, bool]) -> None:
    """Puts every submodule in training or evaluation mode.

    In the mode that the module was wrapped in, every submodule keeps the flag it had then: a part that the user
    had put in the other mode stays there.
    """
    module.train(train)
    if train == modes_at_wrap.get(""):
        for name, sub in module.named_modules(remove_duplicate=False):
            if name in modes_at_wrap:
                sub.training = modes_at_wrap[name]


@contextmanager
def restored(module: nn.Module) -> Iterator[dict[str, int | float]]:
    """Puts Python numbers and flags that a forward changes back at the end: a capture runs it once.

    Yields:
        Filled at the end: which numbers were changed, {dotted name: the value it has again}.
    """
    before = [(path, sub, _plain(sub)) for path, sub in module.named_modules()]
    changed: dict[str, int | float] = {}
    try:
        yield changed
    finally:
        for path, sub, values in before:
            now = _plain(sub)
            old = {name: value for name, value in values.items() if now.get(name) != value}
            changed |= {f"{path}.{name}".lstrip("."): value for name, value in old.items()}
            for name, value in old.items():
                _put_back(sub, name, value)


@contextmanager
def refilled(module: nn.Module) -> Iterator[None]:
    """Gives lists, dicts and sets of a module back what they hold now: a capture puts tensors without values there."""
    held = dict[int, tuple[Any, Any]]()
    own = [(sub, name, value) for sub in module.modules() for name, value in vars(sub).items() if name not in _OF_TORCH]
    _note_containers([value for _, _, value in own], held)
    try:
        yield
    finally:
        for container, content in held.values():
            _refill(container, content)
        for sub, name, value in own:
            if id(value) in held:  # an export puts copies in their places
                vars(sub)[name] = value


def _note_containers(values: Iterable[Any], held: dict[int, tuple[Any, Any]]) -> None:
    """Adds the containers among the values, and those in them, with what they hold."""
    for value in values:
        if type(value) in (list, dict, set) and id(value) not in held:
            held[id(value)] = value, value.copy()
            _note_containers(value.values() if isinstance(value, dict) else value, held)


def _refill(container: Any, content: Any) -> None:
    """Makes a container hold this again, if it holds anything else."""
    if len(container) == len(content) and all(a is b for a, b in zip(_parts(container), _parts(content), strict=True)):
        return
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)


def _parts(container: Any) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _put_back(module: nn.Module, name: str, value: int | float) -> None:
    if name in vars(module):
        vars(module)[name] = value
    else:
        setattr(module, name, value)


def _plain(module: nn.Module) -> dict[str, int | float]:
    """Numbers and flags among the attributes, `training` aside, which is the caller's."""
    held = {**vars(module), **scripted.attributes(module)}.items()
    return {name: value for name, value in held if isinstance(value, int | float) and name != "training"}


def _hollow(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not is_lazy(tensor) and (tensor.layout is not torch.strided or tensor.is_quantized):
        kind = "quantized" if tensor.is_quantized else str(tensor.layout)
        raise DTypeError(f"{name} is a {kind} tensor, which XLA does not have: make it dense before wrapping")
    if is_lazy(tensor):
        raise WrapError("the module has lazy parameters that are not initialised: call it once before wrapping it")
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _computed(module: nn.Module) -> Iterator[torch.Tensor]:
    """Tensor attributes with a history, which deepcopy refuses."""
    for sub in module.modules():
        for value in vars(sub).values():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                yield value
