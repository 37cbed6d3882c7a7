"""Kernels that mix positions by convolution, or weigh features by what all positions hold."""

from __future__ import annotations

import torch
from torch import nn

from esper.errors import SeedError
from esper.program import LayerSite
from esper.torch_frontend.blueprints.geometry import mix, reach
from esper.torch_frontend.blueprints.registry import ANY, MAPS, ROWS, blueprint, zero_output


@blueprint("conv", kinds=(ANY,), unless=ROWS)
def conv(site: LayerSite, width: int = 16) -> nn.Module:
    """A bottleneck: the host's own geometry, or 3 taps an axis, to `width` features; GELU; a mix, zero at birth."""
    _check_positions(site, "conv")
    return nn.Sequential(reach(site, width, size=3), nn.GELU(), zero_output(mix(site, width, site.features_out)))


@blueprint("separable", kinds=(ANY,), unless=ROWS)
def separable(site: LayerSite, multiplier: int = 1) -> nn.Module:
    """A depthwise convolution, `multiplier` features each; GELU; a mix, zero at birth (as in arXiv:1704.04861)."""
    _check_positions(site, "separable")
    width = site.features_in * multiplier
    return nn.Sequential(
        reach(site, width, size=3, depthwise=True), nn.GELU(), zero_output(mix(site, width, site.features_out))
    )


class SqueezeExcite(nn.Module):
    """`x * tanh(up(gelu(down(mean of x over its positions))))`."""

    def __init__(self, features: int, width: int, positions: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(features, width), zero_output(nn.Linear(width, features))
        self.axes = tuple(range(-positions, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped like `x`."""
        pooled = x.mean(self.axes) if self.axes else x
        weights = torch.tanh(self.up(nn.functional.gelu(self.down(pooled))))
        return x * weights[(..., *(None,) * len(self.axes))]


@blueprint("squeeze_excite", kinds=(ANY,), placement="sequential")
def squeeze_excite(site: LayerSite, reduction: int = 4) -> nn.Module:
    """Feature weights from the mean over all positions (arXiv:1709.01507), from -1 to 1 and 0 at birth.

    With features last each position weighs itself, so that a causal model stays causal.
    """
    features = site.features_out
    return SqueezeExcite(features, max(1, features // reduction), site.positions)


class FeatureConvolution(nn.Module):
    """Convolutions along the features, as if they were a signal, then a linear map of what they give."""

    def __init__(self, inputs: int, outputs: int, width: int, layers: int, taps: int) -> None:
        super().__init__()
        stack: list[nn.Module] = []
        length, channels = inputs, 1
        for _ in range(layers):
            stack += [nn.Conv1d(channels, width, taps, stride=2, padding=taps // 2), nn.GELU()]
            length, channels = (length + 2 * (taps // 2) - taps) // 2 + 1, width
        self.stack, self.output = nn.Sequential(*stack), zero_output(nn.Linear(width * length, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`outputs` features for each position of `x`."""
        signal = self.stack(x.reshape(-1, 1, x.shape[-1]))
        return self.output(signal.reshape(*x.shape[:-1], self.output.in_features))


@blueprint("conv1d", kinds=(ANY,), unless=MAPS)
@blueprint("conv1d", kinds=("Embedding",), placement="sequential")
def conv1d(site: LayerSite, width: int = 16, layers: int = 2, taps: int = 5) -> nn.Module:
    """`layers` convolutions of stride 2 along the features, GELU after each, and a linear map that is zero at birth.

    For linear layers whose features are in an order that means something: samples of a signal, rows of an image.
    """
    if site.positions:
        raise SeedError(f"blueprint 'conv1d' takes features that come last; layer {site.name!r} has them on axis 1")
    return FeatureConvolution(site.features_in, site.features_out, width, layers, taps)


def _check_positions(site: LayerSite, name: str) -> None:
    if not site.positions:
        raise SeedError(f"blueprint {name!r} is for maps; layer {site.name!r} ({site.type}) has features only")
