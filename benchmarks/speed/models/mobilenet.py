"""MobileNets: depthwise 3x3 and 1x1 convolutions."""

from __future__ import annotations

from torch import Tensor, nn


def normed(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class MobileNet(nn.Module):
    """A stem, then pairs of a depthwise 3x3 and a 1x1 convolution.

    Args:
        width: Of the stem.
        pairs: (width after the pair, stride of the depthwise convolution) of each pair.
        classes: Outputs.
    """

    def __init__(self, width: int, pairs: tuple[tuple[int, int], ...], classes: int) -> None:
        super().__init__()
        layers, inputs = [normed(3, width, 3, 2)], width
        for outputs, stride in pairs:
            layers += [normed(inputs, inputs, 3, stride, groups=inputs), normed(inputs, outputs, 1)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))
