"""Modules of torch whose forward runs elsewhere: what autograd, optimisers and checkpoints of torch's see of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor as Tensor
from torch import jit, nn
from torch.nn import Module as Module

from esper.errors import ArgumentError, RefusedError, WrapError

Tensors = Sequence[torch.Tensor | None]


class Ready(Protocol):
    """A call whose arrays are known and which has not run.

    Attributes:
        tensors: For each array the tensor that it is of; None: it is of none.
        guarded: Of these, those whose memory a backward may read again.
    """

    tensors: Tensors
    guarded: Sequence[bool]

    def values(self) -> list[torch.Tensor]:
        """The outputs that are tensors."""
        ...

    def forward(self, moving: Sequence[int]) -> tuple[list[torch.Tensor], Pull]:
        """The outputs, and what turns their gradients into those of the arrays at these places."""
        ...

    def assemble(self, outputs: Sequence[torch.Tensor]) -> Any:
        """The outputs in the containers of the call."""
        ...


Pull = Callable[[Tensors], Tensors]
"""From the gradients of outputs to those of arrays; None for one that has none."""


class Runner(Protocol):
    """What runs a hosted module's forward."""

    def copy(self) -> Runner:
        """Another for a module with tensors of its own."""
        ...

    def current(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """The model with a module's values."""
        ...

    def ready(
        self, tensors: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], modes: Modes
    ) -> Ready:
        """A call."""
        ...


Modes = Mapping[str, bool]
"""By submodule, whether it is in training mode."""


class Hosted:
    """Mixed into a module's class: its forward runs on XLA, its backward is JAX's, and all else is as it was."""

    _runner: Runner
    _built: dict[str, nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module that was wrapped."""
        if torch.is_autocast_enabled("cpu"):
            raise RefusedError(
                "autocast has no effect on a module that runs on XLA: convert the module before you wrap it, "
                "`module.to(torch.bfloat16)`"
            )
        ready = self._runner.ready(self._tensors(), args, kwargs, self._modes())
        moving = [place for place, t in enumerate(ready.tensors) if t is not None and t.requires_grad]
        if not (moving and torch.is_grad_enabled()):
            return ready.assemble(ready.values())
        given = [t if place in set(moving) or ready.guarded[place] else None for place, t in enumerate(ready.tensors)]
        return ready.assemble(_Call.apply(ready, moving, *given))

    def esper_model(self) -> Any:
        """The wrapped model with this module's values, in memory of its own."""
        return self._runner.current(self._tensors())

    def _module(self) -> nn.Module:
        return self  # pyright: ignore[reportReturnType]

    def _tensors(self) -> dict[str, torch.Tensor]:
        module = self._module()
        return {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def _modes(self) -> Modes:
        """The submodules' modes; they are to be those that were wrapped."""
        found = dict(self._module().named_modules())
        built = self.__dict__["_built"]
        if found.keys() != built.keys() or any(built[name] is not sub for name, sub in found.items() if name):
            strange = next((n for n in found.keys() | built.keys() if found.get(n) is not built.get(n) and n), "")
            raise ArgumentError(
                f"submodule {strange!r} is another than was wrapped, and a module that runs on XLA does not see it: "
                "change the module before you wrap it"
            )
        return {name: sub.training for name, sub in found.items()}

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ArgumentError(
            "a module that runs on XLA is not pickled: save its state_dict(), or what esper.unwrap makes of its model"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A module with tensors of its own, and the same compiled programs."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        held = {name: value for name, value in self.__dict__.items() if name not in ("_runner", "_built")}
        made.__dict__.update(copy.deepcopy(held, memo))
        return _attached(made, self._runner.copy())


def hosted(module: nn.Module, runner: Runner) -> Any:
    """The module itself, its forward run by the runner.

    Raises:
        WrapError: It is a script, whose class cannot be another.
    """
    if isinstance(module, jit.ScriptModule):
        raise WrapError("a scripted module cannot run on XLA in torch: wrap a module that holds it")
    module.__class__ = _class(type(module))
    return _attached(module, runner)


def _attached(module: Any, runner: Runner) -> Any:
    module.__dict__["_runner"] = runner
    module.__dict__["_built"] = dict(module.named_modules())
    return module


@cache
def _class(own: type[nn.Module]) -> type[nn.Module]:
    made: Any = type(f"Hosted{own.__name__}", (Hosted, own), {"__module__": own.__module__})
    return made


def is_parameter(tensor: torch.Tensor) -> bool:
    """Whether torch trains it, or would."""
    return isinstance(tensor, nn.Parameter)


def entropy() -> int:
    """A number that torch's generator draws."""
    return int(torch.randint(1 << 31, ()))


def overwrite(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Puts what a forward has written into a tensor."""
    with torch.no_grad():
        tensor.copy_(values)


def holding(tensors: Mapping[str, torch.Tensor], trained: Callable[[str], bool]) -> nn.Module:
    """A module that has these tensors under these names: as parameters if they are trained, else as buffers."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, own = name.split(".")
        place = root
        for step in path:
            if step not in place._modules:
                place.add_module(step, nn.Module())
            place = place.get_submodule(step)
        if trained(name) and (tensor.is_floating_point() or tensor.is_complex()):
            place.register_parameter(own, nn.Parameter(tensor))
        else:
            place.register_buffer(own, tensor)
    return root


class _Call(torch.autograd.Function):
    """One call, with what its backward needs."""

    @staticmethod
    def forward(ctx: Any, ready: Ready, moving: list[int], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        outputs, pull = ready.forward(moving)
        # Torch sees to it that nothing of these has changed when the backward runs: XLA reads the same memory.
        ctx.save_for_backward(*(t for t, guarded in zip(tensors, ready.guarded, strict=True) if guarded))
        ctx.set_materialize_grads(False)
        ctx.pull, ctx.moving, ctx.taken = pull, moving, len(tensors)
        ctx.mark_non_differentiable(*(y for y in outputs if not (y.is_floating_point() or y.is_complex())))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor | None) -> tuple[Any, ...]:
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
