"""Kernels beside linear layers."""

from __future__ import annotations

from torch import nn

from esper.program import LayerSite
from esper.torch_frontend.blueprints.registry import blueprint, zero_output


@blueprint("low_rank", kinds=("Linear",))
def low_rank(site: LayerSite, rank: int = 8) -> nn.Module:
    """`B(A(x))`, rank `rank`, B zero at birth (the form of LoRA, arXiv:2106.09685)."""
    inner = max(1, min(rank, site["in_features"], site["out_features"]))
    down = nn.Linear(site["in_features"], inner, bias=False)
    return nn.Sequential(down, zero_output(nn.Linear(inner, site["out_features"], bias=False)))


@blueprint("mlp", kinds=("Linear",))
def mlp(site: LayerSite, width: int = 32) -> nn.Module:
    """A hidden layer of `width` GELU units, output weights zero at birth."""
    output = zero_output(nn.Linear(width, site["out_features"]))
    return nn.Sequential(nn.Linear(site["in_features"], width), nn.GELU(), output)
