"""Layers with kernels beside them, in plain torch.

A grown layer is the host's layer with a further forward: its class is made on the fly, as torch's own
parametrizations do, so `isinstance`, attributes and `state_dict` keys stay what they were, and the
kernels are ordinary submodules under `grown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from esper.blending import joined
from esper.errors import WrapError

_OWN = "_forward_of_its_own"


class Branch(nn.Module):
    """A kernel with its weight, what it is fed and how it joins."""

    def __init__(self, kernel: nn.Module, alpha: float, placement: str, blend: str, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.kernel = kernel
        self.alpha = alpha
        self.placement = placement
        self.blend = blend

    def forward(self, input: torch.Tensor, host: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The output of the layer and the branches before, with this one in it."""
        made = self.kernel(host if self.placement == "sequential" else input)
        return joined(self.blend, output, self.alpha, made)

    def extra_repr(self) -> str:
        """The weight, the placement and the blend."""
        return f"alpha={self.alpha:g}, placement={self.placement!r}, blend={self.blend!r}"


def beside(branches: Iterable[nn.Module], input: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
    """What a layer gives, with branches in it, one after the other."""
    output = host
    for branch in branches:
        output = branch(input, host, output)
    return output


class Grown:
    """Mixed into a layer's class: the layer's own output with its branches in it."""

    grown: nn.ModuleList

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The host's forward, then each branch."""
        forward: Any = self.__dict__.get(_OWN) or super().forward  # pyright: ignore[reportAttributeAccessIssue]
        host = forward(*args, **kwargs)
        input = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        return beside(self.grown, input, host)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickled by its host class, since its own class has no module-level name."""
        return _empty, (type(self).__bases__[1],), self.__dict__


class GrownParts(Grown):
    """The same for an `nn.Sequential`, whose forward runs through its parts: those of its own."""

    def __iter__(self) -> Iterator[nn.Module]:
        return (part for name, part in self._modules.items() if name != "grown")  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return sum(1 for _ in self)


def grow(module: nn.Module, name: str, branch: Branch) -> nn.Module:
    """`module` with a branch beside the layer `name`; the layer object stays the same one, wherever it is shared."""
    layer = module.get_submodule(name)
    if not isinstance(layer, Grown):
        if hasattr(layer, "grown"):
            raise WrapError(
                f"layer {name!r} ({type(layer).__name__}) has an attribute `grown`, where unwrap puts what grew: "
                "rename it, or unwrap with fold=True if all of it folds"
            )
        if "forward" in vars(layer):  # an instance's own would go before that of the class
            vars(layer)[_OWN] = vars(layer).pop("forward")
        layer.__class__ = grown_class(type(layer))
        layer.add_module("grown", nn.ModuleList())
    layer.grown.append(branch)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    for path, around in module.named_modules():
        if isinstance(around, nn.TransformerEncoderLayer) and name.startswith(f"{path}." if path else ""):
            around.activation_relu_or_gelu = 0  # torch's fast path reads the weights of its layers and calls none
    return module


@cache
def grown_class(host: type[nn.Module]) -> type[nn.Module]:
    """The class of `host` layers that have grown."""
    mixin = GrownParts if issubclass(host, nn.Sequential) else Grown
    made: Any = type(f"Grown{host.__name__}", (mixin, host), {"__module__": host.__module__})
    return made


def _empty(host: type[nn.Module]) -> nn.Module:
    cls = grown_class(host)
    return cls.__new__(cls)
