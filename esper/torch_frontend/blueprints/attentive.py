"""Kernels that mix positions by attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from esper.errors import SeedError
from esper.program import LayerSite
from esper.torch_frontend.blueprints.registry import ANY, blueprint, zero_output


class AttentionBranch(nn.Module):
    """Multi-head self-attention over positions: the axis before the features, or all that follow them."""

    def __init__(self, features: int, heads: int, head_size: int, positions: int, causal: bool) -> None:
        super().__init__()
        inner = heads * head_size
        self.qkv, self.output = nn.Linear(features, 3 * inner), zero_output(nn.Linear(inner, features))
        self.heads, self.positions, self.causal = heads, positions, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped like `x`."""
        rows = x.flatten(-self.positions).transpose(-1, -2) if self.positions else x
        qkv = self.qkv(rows)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).movedim(-4, -2).unbind(-4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        made = self.output(mixed.transpose(-2, -3).flatten(-2))
        return made.transpose(-1, -2).reshape(x.shape) if self.positions else made


@blueprint("attention", kinds=(ANY,), placement="sequential")
def attention(site: LayerSite, heads: int = 2, head_size: int = 8, causal: bool | None = None) -> nn.Module:
    """Self-attention over the layer's output (arXiv:1706.03762), its output map zero at birth.

    Args:
        site: The layer.
        heads: How many heads.
        head_size: Features of each.
        causal: Whether a position sees only those before it; None: yes where features come last, since a branch
            that looks ahead would spoil a causal model, no over maps. Padding masks do not reach the branch.
    """
    if not site.positions and len(site.known_shape("output")) < 3:
        raise SeedError(f"blueprint 'attention' is for sequences or maps; layer {site.name!r} gives {site.output}")
    causes = not site.positions if causal is None else causal
    return AttentionBranch(site.features_out, heads, head_size, site.positions, causes)
