"""PyTorch's optimisers as plain data: groups, options and moments, by the names of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.optim import Optimizer as Optimizer

from esper.errors import OptimizerStateError
from esper.torch_frontend.arrays import exportable, to_torch
from esper.torch_frontend.probe import Place, places

KINDS: dict[type[optim.Optimizer], str] = {
    optim.SGD: "sgd",
    optim.Adam: "adam",
    optim.AdamW: "adam",
    optim.RMSprop: "rmsprop",
    optim.Adagrad: "adagrad",
}
_OPTIONAL = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered", "momentum_buffer": "momentum"}
"""Moments that are there under an option alone."""
_NO_MATTER = ("params", "param_names", "foreach", "fused", "capturable", "differentiable", "initial_lr")


@dataclass(frozen=True)
class Moments:
    """What an optimiser remembers of a parameter.

    Attributes:
        step: Steps that it has made.
        arrays: By torch's names, such as "exp_avg".
    """

    step: int
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Group:
    """Parameters that are optimised alike.

    Attributes:
        kind: "sgd", "adam", "rmsprop" or "adagrad".
        options: By torch's names.
        members: By parameter; None: it has never had a gradient.
    """

    kind: str
    options: dict[str, Any]
    members: dict[str, Moments | None]


def read(optimizer: optim.Optimizer, module: nn.Module | None, wide: bool) -> list[Group]:
    """The groups of an optimiser.

    Args:
        optimizer: One of torch's own classes.
        module: Whose parameters it optimises; None: it was made of `named_parameters()`.
        wide: Whether 64-bit values are kept.

    Raises:
        OptimizerStateError: Another class, or parameters without names.
    """
    kind = KINDS.get(type(optimizer))
    if kind is None:
        known = ", ".join(cls.__name__ for cls in KINDS)
        raise OptimizerStateError(
            f"a {type(optimizer).__name__} is not mapped to optax; there are: {known}. Build the optimiser with optax,"
            " and start it with `tx.init(model.params)`"
        )
    groups = []
    for group, named in zip(optimizer.param_groups, _named(optimizer, module), strict=True):
        options = {name: _plain(value) for name, value in group.items() if name not in _NO_MATTER}
        members = {name: _moments(optimizer.state.get(p), name, wide) for name, p in named.items() if p.requires_grad}
        groups.append(Group(kind, options, members))
    return groups


def parameters(optimizer: optim.Optimizer, module: nn.Module | None) -> dict[str, torch.Tensor]:
    """The parameters that require gradients, by name: the module's, or those that the optimiser has names for."""
    groups = _named(optimizer, module) if module is None else [dict(module.named_parameters())]
    return {name: p.detach() for named in groups for name, p in named.items() if p.requires_grad}


def write(optimizer: optim.Optimizer, module: nn.Module, moments: Mapping[Place, Moments], fields: set[str]) -> None:
    """Gives an optimiser these moments in the place of its own; parameters without moments rest, as at its start.

    Args:
        optimizer: Of the module's parameters.
        module: Whose parameters they are.
        moments: By parameter.
        fields: The moments that this kind of optimiser may have, by torch's names.

    Raises:
        OptimizerStateError: Moments of another kind of optimiser, or of other shapes; what it had is still there.
    """
    by_name = {id(parameter): place for place, parameter in places(module)}
    states: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for group, named in zip(optimizer.param_groups, _named(optimizer, module), strict=True):
        for name, parameter in named.items():
            found = moments.get(by_name[id(parameter)])
            if found is not None:
                states.append((parameter, _state(optimizer, group, name, parameter, found, fields)))
    if not states and any(_needed(group, fields) for group in optimizer.param_groups):
        raise OptimizerStateError(
            "none of the optimiser's parameters has moments in this state: is it another model's?"
        )
    for parameter, state in states:
        optimizer.state[parameter] = state


def _needed(group: Mapping[str, Any], fields: set[str]) -> set[str]:
    """The moments that a group's options ask for."""
    return fields - {field for field, option in _OPTIONAL.items() if not group.get(option)}


def _state(
    optimizer: optim.Optimizer,
    group: Mapping[str, Any],
    name: str,
    parameter: torch.Tensor,
    found: Moments,
    fields: set[str],
) -> dict[str, torch.Tensor]:
    """What torch keeps for one parameter."""
    needed = _needed(group, fields)
    if set(found.arrays) != needed:
        raise OptimizerStateError(
            f"{name}: the state has {sorted(found.arrays)}, and a {type(optimizer).__name__} with these options has"
            f" {sorted(needed)}"
        )
    state = {own: to_torch(array).to(parameter.dtype) for own, array in found.arrays.items()}
    for own, tensor in state.items():
        if tensor.shape != parameter.shape:
            shapes = f"{tuple(tensor.shape)} for {tuple(parameter.shape)}"
            raise OptimizerStateError(f"{name}: {own} has shape {shapes}; has the layer been folded?")
    return state if isinstance(optimizer, optim.SGD) else {"step": torch.tensor(float(found.step)), **state}


def _named(optimizer: optim.Optimizer, module: nn.Module | None) -> Iterator[dict[str, torch.Tensor]]:
    """The parameters of each group by name."""
    names = {} if module is None else {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        own = dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        known = names if module is not None else own
        lost = [tuple(p.shape) for p in group["params"] if id(p) not in known]
        if lost:
            raise OptimizerStateError(
                f"{len(lost)} of the optimiser's parameters have no name here (one has shape {lost[0]}): give the"
                " module whose parameters they are"
            )
        yield {known[id(p)]: p for p in group["params"]}


def _moments(state: Mapping[str, Any] | None, name: str, wide: bool) -> Moments | None:
    if not state:
        return None
    step = int(state.get("step", 1))  # SGD counts none, and treats the first as no other but by its having no buffer
    tensors = {own: value for own, value in state.items() if own != "step" and isinstance(value, torch.Tensor)}
    return Moments(step, {own: np.array(exportable(t, f"{name}, {own}", wide)) for own, t in tensors.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value
