"""Blocks of two layers with an activation between them, which hidden units can be added to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules import activation as activations
from torch.nn.modules.dropout import _DropoutNd

from esper.torch_frontend.folding.affine import Affine, is_plain, read, write

_JOINS_FEATURES = (
    nn.GLU,
    nn.LogSoftmax,
    nn.MultiheadAttention,
    nn.PReLU,
    nn.RReLU,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
)
_ELEMENTWISE = tuple(
    kind
    for kind in vars(activations).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in (nn.Module, *_JOINS_FEATURES)
)
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


@dataclass(frozen=True)
class Hidden:
    """Hidden units: the layer that makes them, and what is made of them, in float64."""

    first: nn.Module
    second: Affine

    def times(self, factor: float) -> Hidden:
        """Units that give so many times as much."""
        return replace(self, second=self.second.times(factor))


def block(layer: nn.Module) -> tuple[nn.Module, nn.Module | None, nn.Module] | None:
    """First layer, activation and second layer of a block; None if it is none.

    Of an `nn.Sequential` that is made of them, or of a class of one's own, whose activation is then not known.
    """
    if is_guess(layer):
        first, second = _weighted(layer)
        return first, None, second
    if not is_row(layer):
        return None
    parts = [part for part in layer if not isinstance(part, nn.Identity)]
    inner = [part for part in parts[1:-1] if not isinstance(part, _DropoutNd)]
    if not all(map(is_plain, parts)):
        return None
    if len(parts) < 3 or len(inner) != 1 or not isinstance(inner[0], _ELEMENTWISE):
        return None
    first, second = parts[0], parts[-1]
    return (first, inner[0], second) if _pair(first, second) else None


def is_row(layer: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a layer runs its parts one after the other and does nothing else."""
    return isinstance(layer, nn.Sequential) and is_plain(layer)


def is_guess(layer: nn.Module) -> bool:
    """Whether a class of one's own holds the two layers of a block; what it does with them its forward alone says."""
    parts = _weighted(layer)
    return not is_plain(layer) and len(parts) == 2 and _pair(*parts)


def hidden(kernel: nn.Module, layer: nn.Module) -> Hidden | None:
    """A kernel as more hidden units of a block; None if it is none, or the block is not made alike."""
    own, held = block(layer), block(kernel)
    if any(isinstance(part, _DropoutNd) and part.p for part in kernel.modules()):
        return None  # which the block would not have
    if own is None or held is None or (own[1] is not None and repr(own[1]) != repr(held[1])):
        return None
    if not (_alike(held[0], own[0]) and _alike(held[2], own[2])):
        return None
    units, second = read(held[0]), read(held[2])
    if units is None or second is None or read(own[0]) is None or read(own[2]) is None:
        return None
    return Hidden(held[0], second)


def widen(first: nn.Module, second: Affine, added: list[Hidden]) -> Affine:
    """Gives the block's first layer more units; returns its second with what is made of them."""
    units = read(first)
    assert units is not None
    for more in added:
        new = read(more.first)
        assert new is not None
        units = Affine(torch.cat([units.weight, new.weight]), torch.cat([units.bias, new.bias]))
        weight = torch.cat([second.weight, more.second.weight], dim=1)
        second = Affine(weight, second.bias + more.second.bias)
    write(first, units)
    return second


def tail(layer: nn.Module) -> nn.Module:
    """The layer whose output is that of `layer`: the last of an `nn.Sequential`, the second of a block, or itself."""
    while isinstance(layer, nn.Sequential) and is_row(layer) and len(layer):
        layer = layer[-1]
    return _weighted(layer)[1] if is_guess(layer) else layer


def _weighted(layer: nn.Module) -> list[nn.Module]:
    """The parts with parameters of their own."""
    parts = (part for part in layer.modules() if part is not layer)
    return [part for part in parts if next(part.parameters(recurse=False), None) is not None]


def _pair(first: nn.Module, second: nn.Module) -> bool:
    both = isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    return (both or _convolutions(first, second)) and first is not second


def _convolutions(first: Any, second: Any) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    same = any(isinstance(first, kind) and isinstance(second, kind) for kind in kinds)
    return same and first.groups == second.groups == 1


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, nn.Linear) or isinstance(other, nn.Linear):
        return isinstance(one, nn.Linear) and isinstance(other, nn.Linear)
    return all(getattr(one, name) == getattr(other, name) for name in _GEOMETRY)
