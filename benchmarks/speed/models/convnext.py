"""ConvNeXt: depthwise 7x7 convolutions, layer norms and linear layers over channels."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of an image."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise convolution, then an MLP over channels, scaled by channel, beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)
        # The usual 1e-6 would hide the block from the losses that contenders are compared by.
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.scale * self.reduce(F.gelu(self.expand(out)))
        return x + out.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A patchify stem, stages of blocks, a norm and a 2x2 convolution of stride 2 between stages."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6))
        between = [
            nn.Sequential(ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2))
            for before, width in pairwise(widths)
        ]
        self.reductions = nn.ModuleList([stem, *between])
        stages = [[Block(width) for _ in range(depth)] for depth, width in zip(depths, widths, strict=True)]
        self.stages = nn.ModuleList([nn.Sequential(*blocks) for blocks in stages])
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for reduction, stage in zip(self.reductions, self.stages, strict=True):
            x = stage(reduction(x))
        return self.head(self.norm(x.mean((2, 3))))
