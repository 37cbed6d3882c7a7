"""Layers that fit a site: linear over its features where they are last, convolutions where positions follow them."""

from __future__ import annotations

from typing import Any

from torch import nn

from esper.errors import SeedError
from esper.program import LayerSite

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_SAME = ("kernel_size", "stride", "padding", "dilation")


def mix(site: LayerSite, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """A linear map over the features at every position of the site's output."""
    return _CONV[site.positions](inputs, outputs, 1, bias=bias) if site.positions else nn.Linear(inputs, outputs, bias)


def reach(site: LayerSite, outputs: int, bias: bool = True, size: int = 1, depthwise: bool = False) -> nn.Module:
    """From the site's input to `outputs` features at the positions of its output.

    A convolution is given the host's own geometry; before another layer with positions it has `size` taps and
    the stride that the layer shows.

    Args:
        site: The layer.
        outputs: Features to give.
        bias: Whether to add one.
        size: Taps an axis, where the host is no convolution.
        depthwise: Whether each input feature goes to features of its own.

    Raises:
        SeedError: The layer changes its positions in a way that no stride says.
    """
    inputs = site.features_in
    if not site.positions:
        return nn.Linear(inputs, outputs, bias)
    groups = inputs if depthwise else 1
    if "kernel_size" in site and "in_channels" in site:
        options: dict[str, Any] = {name: site[name] for name in _SAME}
        if site.kind.startswith("ConvTranspose"):
            options |= {"output_padding": site["output_padding"]}
            return _TRANSPOSED[site.positions](inputs, outputs, bias=bias, groups=groups, **options)
        options |= {"padding_mode": site["padding_mode"]}
    else:
        options = {"kernel_size": size, "padding": size // 2, "stride": _stride(site)}
    return _CONV[site.positions](inputs, outputs, bias=bias, groups=groups, **options)


def _stride(site: LayerSite) -> tuple[int, ...]:
    if not site.input:
        return (1,) * site.positions
    before, after = site.input[2:], site.output[2:]
    strides = [1 if x == y else _ratio(x, y) for x, y in zip(before, after, strict=False)]
    if len(before) != len(after) or 0 in strides:
        raise SeedError(
            f"layer {site.name!r} ({site.type}) turns positions {before} into {after}, which is no stride: "
            "choose a blueprint that is fed the layer's output"
        )
    return tuple(strides)


def _ratio(before: int | str, after: int | str) -> int:
    """The stride from one size to another; 0: none."""
    fixed = isinstance(before, int) and isinstance(after, int) and after > 0
    return before // after if fixed and before % after == 0 else 0  # pyright: ignore[reportOperatorIssue]
