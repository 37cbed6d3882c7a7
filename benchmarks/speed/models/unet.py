"""U-Nets: a class for every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions with their norms and ReLUs."""
    layers: list[nn.Module] = []
    for given in (inputs, outputs):
        layers += [nn.Conv2d(given, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down by max pools, up by transposed convolutions, with the maps of the way down joined in."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        widths = [width << number for number in range(depth + 1)]
        self.down = nn.ModuleList([double(3 if not n else widths[n - 1], widths[n]) for n in range(depth)])
        self.pool = nn.MaxPool2d(2)
        self.bottom = double(widths[-2], widths[-1])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1])])
        self.up = nn.ModuleList([double(2 * w, w) for w in reversed(widths[:-1])])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for stage in self.down:
            x = stage(x)
            kept.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for grow, stage in zip(self.grow, self.up, strict=True):
            x = stage(torch.cat([kept.pop(), grow(x)], 1))
        return self.head(x)
