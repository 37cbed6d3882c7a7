"""Convolutions over one-dimensional signals."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two dilated convolutions beside a shortcut."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(self.norm(x))))


class SignalNet(nn.Module):
    """A strided stem, dilated residual blocks, the mean over time."""

    def __init__(self, channels: int, width: int, dilations: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(channels, width, 9, 4, 4)
        self.blocks = nn.Sequential(*[Residual(width, dilation) for dilation in dilations])
        self.pool = nn.AvgPool1d(4)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).mean(2))
