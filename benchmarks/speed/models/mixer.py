"""MLP-Mixers: MLPs over patches and over channels in turn."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.speed.models.transformer import Mlp


class Block(nn.Module):
    """An MLP over patches, then one over channels."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.over_patches = Mlp(patches, 2 * patches)
        self.norm2 = nn.LayerNorm(width)
        self.over_channels = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches, blocks, the mean over patches."""

    def __init__(self, size: int, patch: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*[Block(width, (size // patch) ** 2) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))
