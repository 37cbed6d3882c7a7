"""Layers with kernels beside them, in plain torch.

A grown layer is the host's layer with a further forward: its class is made on the fly, as torch's own
parametrizations do, so `isinstance`, attributes and `state_dict` keys stay what they were, and the
kernels are ordinary submodules under `grown`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn


class Branch(nn.Module):
    """A kernel with its weight and what it is fed."""

    def __init__(self, kernel: nn.Module, alpha: float, placement: str) -> None:
        super().__init__()
        self.kernel = kernel
        self.alpha = alpha
        self.placement = placement

    def forward(self, input: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
        """What the kernel adds to the host's output."""
        return self.alpha * self.kernel(host if self.placement == "sequential" else input)

    def extra_repr(self) -> str:
        """The weight and the placement."""
        return f"alpha={self.alpha:g}, placement={self.placement!r}"


class Grown:
    """Mixed into a layer's class: the layer's own output plus what its branches add."""

    grown: nn.ModuleList

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The host's forward, then `output + sum of alpha * kernel`."""
        host = super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        input = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        output = host
        for branch in self.grown:
            output = output + branch(input, host)
        return output

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickled by its host class, since its own class has no module-level name."""
        return _empty, (type(self).__bases__[1],), self.__dict__


def grow(module: nn.Module, name: str, kernel: nn.Module, alpha: float, placement: str) -> nn.Module:
    """`module` with a kernel beside the layer `name`; the layer object stays the same one, wherever it is shared."""
    layer = module.get_submodule(name)
    if not isinstance(layer, Grown):
        layer.__class__ = grown_class(type(layer))
        layer.add_module("grown", nn.ModuleList())
    layer.grown.append(Branch(kernel, alpha, placement))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return module


@cache
def grown_class(host: type[nn.Module]) -> type[nn.Module]:
    """The class of `host` layers that have grown."""
    return type(f"Grown{host.__name__}", (Grown, host), {"__module__": host.__module__})


def _empty(host: type[nn.Module]) -> nn.Module:
    cls = grown_class(host)
    return cls.__new__(cls)
