"""Modules of torch whose forward runs elsewhere: what autograd, optimisers and checkpoints of torch's see of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from esper.errors import ArgumentError, RefusedError


class Ready(Protocol):
    """A call whose tensors are known and which has not run."""

    def values(self) -> list[torch.Tensor]:
        """The outputs that are tensors."""
        ...

    def forward(self, moving: Sequence[int]) -> tuple[list[torch.Tensor], Callable[..., list[torch.Tensor]]]:
        """The outputs, and what turns their gradients into those of the tensors at these places."""
        ...

    def assemble(self, outputs: Sequence[torch.Tensor]) -> Any:
        """The outputs in the containers of the call."""
        ...


class Runner(Protocol):
    """What runs a hosted module's forward."""

    def copy(self) -> Runner:
        """Another for a module with tensors of its own."""
        ...

    def current(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """The model with a module's values."""
        ...

    def ready(
        self, tensors: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], train: bool
    ) -> tuple[list[torch.Tensor], Ready]:
        """A call: the tensors that may require gradients, parameters first, and what runs it."""
        ...


class Hosted(nn.Module):
    """A module whose forward runs on XLA and whose backward is JAX's.

    Its submodules, parameters and buffers are those of `parts`, under their names; they are never called.
    """

    _runner: Runner

    def __init__(self, parts: nn.Module, runner: Runner) -> None:
        super().__init__()
        for held in ("_parameters", "_buffers", "_modules"):
            getattr(self, held).update(getattr(parts, held))
        self._non_persistent_buffers_set |= parts._non_persistent_buffers_set
        self.training = parts.training
        self.__dict__["_runner"] = runner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module that was wrapped."""
        tensors, ready = self._runner.ready(self._tensors(), args, kwargs, self.training)
        moving = [place for place, tensor in enumerate(tensors) if tensor.requires_grad]
        if not (moving and torch.is_grad_enabled()):
            return ready.assemble(ready.values())
        return ready.assemble(_Call.apply(ready, moving, *tensors))

    def esper_model(self) -> Any:
        """The wrapped model with this module's values, in memory of its own."""
        return self._runner.current(self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def __getstate__(self) -> dict[str, Any]:
        raise ArgumentError(
            "a module that runs on XLA is not pickled: save its state_dict(), or what esper.unwrap makes of its model"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Hosted:
        """A module with tensors of its own, and the same compiled programs."""
        parts = nn.Module()
        for held in ("_parameters", "_buffers", "_modules"):
            getattr(parts, held).update(copy.deepcopy(getattr(self, held), memo))
        parts._non_persistent_buffers_set |= self._non_persistent_buffers_set
        parts.training = self.training
        return Hosted(parts, self._runner.copy())


def holding(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module that has these tensors under these names: floats as parameters, the rest as buffers."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, own = name.split(".")
        place = root
        for step in path:
            if step not in place._modules:
                place.add_module(step, nn.Module())
            place = place.get_submodule(step)
        if tensor.is_floating_point() or tensor.is_complex():
            place.register_parameter(own, nn.Parameter(tensor))
        else:
            place.register_buffer(own, tensor)
    return root


class _Call(torch.autograd.Function):
    """One call, with what its backward needs."""

    @staticmethod
    def forward(ctx: Any, ready: Ready, moving: list[int], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, pull = ready.forward(moving)
        # Torch sees to it that nothing of these has changed when the backward runs: XLA reads the same memory.
        ctx.save_for_backward(*tensors)
        ctx.pull, ctx.moving, ctx.taken = pull, moving, len(tensors)
        ctx.mark_non_differentiable(*(y for y in outputs if not (y.is_floating_point() or y.is_complex())))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # as it is under `create_graph=True` only
            raise RefusedError(
                "a module that runs on XLA has no second derivatives in torch: leave create_graph out, take them in "
                "JAX of the wrapped model, or use what esper.unwrap makes of it"
            )
        _ = ctx.saved_tensors  # raises if one of them was written into
        found: list[Any] = [None] * ctx.taken
        for place, slope in zip(ctx.moving, ctx.pull(slopes), strict=True):
            found[place] = slope
        return (None, None, *found)
