"""The way back: a torch module from a skeleton, trained arrays, and what grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from esper.errors import EsperError
from esper.torch_frontend.grown import Branch, grow
from esper.torch_frontend.skeleton import set_mode
from esper.torch_frontend.source import TorchSource


@dataclass(frozen=True)
class Growth:
    """A kernel to be put beside its layer: its own source, its trained arrays, its place, its weight, how it joins."""

    layer: str
    source: TorchSource
    params: Mapping[str, torch.Tensor]
    placement: str
    alpha: float
    blend: str


def rebuild(source: TorchSource, tensors: Mapping[str, torch.Tensor], growths: Sequence[Growth]) -> nn.Module:
    """A new module of the original class holding `tensors`, with every growth beside its layer.

    Args:
        source: Where the model came from.
        tensors: Parameters and buffers by torch name; tied ones under their first name.
        growths: The kernels that take part in the forward.
    """
    module = source.template()
    fill(module, {name: source.original(name, tensor) for name, tensor in tensors.items()})
    for growth in growths:
        kernel = growth.source.template()
        fill(kernel, growth.params)
        branch = Branch(kernel, growth.alpha, growth.placement, growth.blend)
        module = grow(module, growth.layer, branch)
    set_mode(module, source.modes.get("", False), source.modes)
    return module


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes `tensors` into the module's parameters and buffers of the same names."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    lost = own.keys() - tensors.keys()
    if lost:
        raise EsperError(f"no values for {sorted(lost)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
