"""Kernels that work on the features of each position alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from esper.program import LayerSite
from esper.torch_frontend.blueprints.geometry import mix, reach
from esper.torch_frontend.blueprints.registry import ANY, blueprint, zero_output

EMBEDDING = ("Embedding",)  # its input are indices: what is for any layer is fed its output


@blueprint("low_rank", kinds=(ANY,))
def low_rank(site: LayerSite, rank: int = 8) -> nn.Module:
    """`B(A(x))`, rank `rank`, B zero at birth (the form of LoRA, arXiv:2106.09685); A has a convolution's geometry."""
    inner = max(1, min(rank, site.features_in, site.features_out))
    return nn.Sequential(reach(site, inner, bias=False), zero_output(mix(site, inner, site.features_out, bias=False)))


@blueprint("low_rank", kinds=EMBEDDING)
def low_rank_table(site: LayerSite, rank: int = 8) -> nn.Module:
    """A table of `rank` features, mapped to the host's; the map is zero at birth."""
    inner = max(1, min(rank, site["embedding_dim"]))
    table = nn.Embedding(site["num_embeddings"], inner)
    return nn.Sequential(table, zero_output(nn.Linear(inner, site["embedding_dim"], bias=False)))


@blueprint("mlp", kinds=(ANY,))
@blueprint("mlp", kinds=EMBEDDING, placement="sequential")
def mlp(site: LayerSite, width: int = 32) -> nn.Module:
    """A hidden layer of `width` GELU units, output weights zero at birth (an adapter, arXiv:1902.00751)."""
    return nn.Sequential(reach(site, width), nn.GELU(), zero_output(mix(site, width, site.features_out)))


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the host's output."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


@blueprint("gated_mlp", kinds=(ANY,))
@blueprint("gated_mlp", kinds=EMBEDDING, placement="sequential")
def gated_mlp(site: LayerSite, width: int = 32) -> nn.Module:
    """A hidden layer of `width` units gated by SiLU units (SwiGLU, arXiv:2002.05202), output weights zero at birth."""
    down = zero_output(mix(site, width, site.features_out, bias=False))
    return GatedMLP(reach(site, width, bias=False), reach(site, width, bias=False), down)


class ScaleShift(nn.Module):
    """`x * weight + bias`, feature by feature."""

    def __init__(self, features: int, positions: int) -> None:
        super().__init__()
        shape = (features, *(1,) * positions)
        self.weight, self.bias = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped like `x`."""
        return x * self.weight + self.bias


@blueprint("scale_shift", kinds=(ANY,), placement="sequential")
def scale_shift(site: LayerSite) -> nn.Module:
    """A factor and an offset for each feature of the layer's output, zero at birth (as in FiLM, arXiv:1709.07871)."""
    return ScaleShift(site.features_out, site.positions)
