"""Kernels beside convolutions."""

from __future__ import annotations

from torch import nn

from esper.program import LayerSite
from esper.torch_frontend.blueprints.registry import blueprint, zero_output


@blueprint("conv", kinds=("Conv2d",))
def conv(site: LayerSite, width: int = 16) -> nn.Module:
    """The host's own geometry to `width` channels, GELU, and a 1x1 convolution that is zero at birth."""
    inner = nn.Conv2d(
        site["in_channels"],
        width,
        site["kernel_size"],
        stride=site["stride"],
        padding=site["padding"],
        dilation=site["dilation"],
        padding_mode=site["padding_mode"],
    )
    return nn.Sequential(inner, nn.GELU(), zero_output(nn.Conv2d(width, site["out_channels"], 1)))
