"""Kernels that are affine in what they are fed, as arrays in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from esper.torch_frontend.blueprints.dense import ScaleShift
from esper.torch_frontend.folding.affine import Affine, Pointwise, read

_SAME = ("kernel_size", "stride", "padding", "dilation", "output_padding")


def beside(kernel: nn.Module, layer: nn.Module) -> Affine | None:
    """A kernel that is fed what the layer is fed, as a map of the layer's own geometry; None if it is none."""
    parts = _parts(kernel)
    if not parts:
        return None
    made = _in_geometry(parts[0], layer)
    for part in parts[1:]:
        behind = pointwise(part)
        if made is None or behind is None or behind.positions != positions(layer):
            return None
        made = made.then(behind)
    return made


def behind(kernel: nn.Module) -> Pointwise | None:
    """A kernel that is fed the layer's output, as a map over features; None if it is none."""
    found: Pointwise | None = None
    for part in _parts(kernel):
        map = pointwise(part)
        if map is None or (found and found.positions != map.positions):
            return None
        found = found.then(map) if found else map
    return found


def pointwise(part: nn.Module) -> Pointwise | None:
    """A layer as a map over features, the same at every position; None if it is none."""
    if type(part) is ScaleShift:
        scale, shift = part.weight.detach().double(), part.bias.detach().double()
        return Pointwise(scale.flatten(), shift.flatten(), scale.dim() - 1)
    affine = read(part) if isinstance(part, nn.Linear) or _is_mix(part) else None
    if affine is None:
        return None
    return Pointwise(affine.dense().weight.flatten(1), affine.bias, positions(part))


def positions(layer: Any) -> int:
    """How many axes of positions follow the features of what a layer of weights gives."""
    return len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0


def is_convolution(layer: nn.Module) -> bool:
    """Whether it is one, transposed or not."""
    return isinstance(layer, _ConvNd)


def pads_zeros(layer: Any) -> bool:
    """Whether some of the layer's taps read no feature at some positions."""
    if not isinstance(layer, _ConvNd):
        return False
    return isinstance(layer, _ConvTransposeNd) or (layer.padding_mode == "zeros" and _pads(layer))


def _parts(kernel: nn.Module) -> list[nn.Module]:
    """What a kernel runs, one after the other."""
    if type(kernel) is nn.Sequential:
        return [part for child in kernel for part in _parts(child)]
    return [] if type(kernel) is nn.Identity else [kernel]


def _is_mix(part: nn.Module) -> bool:
    return (
        isinstance(part, _ConvNd)
        and not isinstance(part, _ConvTransposeNd)
        and set(part.kernel_size) == {1}
        and set(part.stride) == {1}
        and not _pads(part)
    )


def _in_geometry(part: nn.Module, layer: Any) -> Affine | None:
    """A kernel's first layer as a map of the host layer's geometry."""
    affine = read(part)
    if affine is None:
        return None
    match part:
        case nn.Linear() if isinstance(layer, nn.Linear):
            return affine
        case nn.Embedding() if isinstance(layer, nn.Embedding):
            return affine
        case _ConvTransposeNd() if isinstance(layer, _ConvTransposeNd):
            return affine if all(getattr(part, name) == getattr(layer, name) for name in _SAME) else None
        case _ConvNd() if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
            return _among_taps(affine, part, layer)
    return None


def _among_taps(affine: Affine, part: _ConvNd, layer: _ConvNd) -> Affine | None:
    """A convolution's weights at those taps of another that read the same places."""
    if len(part.kernel_size) != len(layer.kernel_size) or part.stride != layer.stride:
        return None
    if _pads(part) and part.padding_mode != layer.padding_mode:
        return None
    places = []
    for own, held in zip(_reads(part), _reads(layer), strict=True):
        if not set(own) <= set(held):
            return None
        places.append(torch.tensor([held.index(offset) for offset in own]))
    weight = affine.weight.new_zeros(*affine.weight.shape[:2], *layer.kernel_size)
    grid: tuple[Tensor, ...] = torch.meshgrid(*places, indexing="ij")
    weight[(slice(None), slice(None), *grid)] = affine.weight
    return Affine(weight, affine.bias, affine.groups)


def _reads(layer: _ConvNd) -> list[list[int]]:
    """By axis, where each tap reads, counted from stride times the output's position."""
    axes = zip(layer.kernel_size, layer.dilation, _padding(layer), strict=True)
    return [[dilation * tap - before for tap in range(taps)] for taps, dilation, before in axes]


def _pads(layer: Any) -> bool:
    """Whether anything is padded, before the first position or behind the last."""
    if layer.padding == "same":
        return any(dilation * (taps - 1) for taps, dilation in zip(layer.kernel_size, layer.dilation, strict=True))
    return any(_padding(layer))


def _padding(layer: _ConvNd) -> list[int]:
    """By axis, how much is padded before the first position."""
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size)
    if layer.padding == "same":
        return [dilation * (taps - 1) // 2 for taps, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    return [int(size) for size in layer.padding]
