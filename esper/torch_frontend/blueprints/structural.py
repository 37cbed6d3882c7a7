"""Kernels made after the host's own layers: more width inside a block, one more block behind it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from esper.errors import SeedError
from esper.program import LayerSite
from esper.torch_frontend.blueprints.registry import ANY, MAPS, ROWS, blueprint, zero_output

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@blueprint("widen", kinds=(ANY,), unless=(*ROWS, *MAPS))
def widen(site: LayerSite, layer: nn.Module, width: int = 16, activation: str = "") -> nn.Module:
    """`width` more hidden units for a block of two layers with an activation between them.

    The block is the KasminaLayer, such as an `nn.Sequential(nn.Linear, nn.GELU, nn.Linear)`: the units read what it
    reads and add to what it gives, so they can be folded into its own two layers.

    Args:
        site: The block.
        layer: The block itself.
        width: How many units.
        activation: Name of a class of `torch.nn`; "": the block's own, which is then a module of it.

    Raises:
        SeedError: The block has not two linear or two convolution layers, or its activation is no module.
    """
    weighted = [
        part for part in layer.modules() if part is not layer and next(part.parameters(False), None) is not None
    ]
    if len(weighted) != 2 or not all(isinstance(part, _WEIGHTED) for part in weighted):
        held = ", ".join(type(part).__name__ for part in weighted) or "none"
        raise SeedError(
            f"blueprint 'widen' takes a block of two linear or convolution layers; {site.name!r} ({site.type}) "
            f"has: {held}"
        )
    first, second = (_resized(part, *sizes) for part, sizes in zip(weighted, ((0, width), (width, 0)), strict=True))
    return nn.Sequential(first, _activation(site, layer, weighted, activation), zero_output(second))


class AnotherBlock(nn.Module):
    """`gate * (block(x) - x)`: a residual block after the host's, none at all while the gate is 0."""

    copies = "block"

    def __init__(self, block: nn.Module, features: int, positions: int) -> None:
        super().__init__()
        self.block, self.gate = block, nn.Parameter(torch.zeros(features, *(1,) * positions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped like `x`."""
        return self.gate * (self.block(x) - x)


@blueprint("copy", kinds=(ANY,), placement="sequential", unless=("Embedding",))
def copy(site: LayerSite, layer: nn.Module) -> nn.Module:
    """A copy of the block, behind it: depth. A gate for each feature, zero at birth (as in ReZero, arXiv:2003.04887).

    It starts from the values that the host's block has when it germinates.

    Raises:
        SeedError: The block changes the shape of what goes through it.
    """
    if site.known_shape("input") != site.output:
        raise SeedError(
            f"blueprint 'copy' takes a block that keeps its input's shape; {site.name!r} ({site.type}) turns "
            f"{site.input} into {site.output}"
        )
    return AnotherBlock(deepcopy(layer), site.features_out, site.positions)


def _resized(part: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A fresh layer like `part` with other feature counts; 0 keeps a count. Only the first of the two has a bias."""
    bias = bool(outputs) and part.bias is not None
    if isinstance(part, nn.Linear):
        return nn.Linear(inputs or part.in_features, outputs or part.out_features, bias)
    assert isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if part.groups != 1:
        raise SeedError("blueprint 'widen' takes plain convolutions; this block's are grouped")
    geometry = (part.kernel_size, part.stride, part.padding, part.dilation)
    mode = part.padding_mode
    cls = next(kind for kind in _WEIGHTED if isinstance(part, kind))
    return cls(inputs or part.in_channels, outputs or part.out_channels, *geometry, 1, bias, mode)  # pyright: ignore


def _activation(site: LayerSite, layer: nn.Module, weighted: list[nn.Module], name: str) -> nn.Module:
    if name:
        return getattr(nn, name)()
    parts = [part for part in layer.modules() if not list(part.children()) and not isinstance(part, nn.Dropout)]
    between = parts[parts.index(weighted[0]) + 1 : parts.index(weighted[1])]
    if len(between) != 1:
        raise SeedError(
            f"blueprint 'widen' finds {len(between)} activation modules between the two layers of {site.name!r} "
            f'({site.type}): name it, options={{"activation": "GELU"}}'
        )
    return deepcopy(between[0])
