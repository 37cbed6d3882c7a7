"""The hosts that come with esper, small enough that growth can help, and how a host is found by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from esper.errors import ArgumentError

Shape = tuple[int, int, int]


class SmallCNN(nn.Module):
    """Two convolutions with batch normalisation and pooling, then a linear layer.

    Args:
        shape: Channels, height and width of the images.
        classes: How many classes there are.
        width: Channels of the first convolution; the second has twice as many.
    """

    def __init__(self, shape: Shape = (1, 28, 28), classes: int = 10, width: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.pool = nn.MaxPool2d(3)
        self.head = nn.Linear(2 * width * (shape[1] // 9) * (shape[2] // 9), classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        x = self.pool(torch.relu(self.norm1(self.conv1(images))))
        x = self.pool(torch.relu(self.norm2(self.conv2(x))))
        return self.head(x.flatten(1))


class SmallMLP(nn.Module):
    """One hidden layer.

    Args:
        shape: Channels, height and width of the images, which come flat.
        classes: How many classes there are.
        width: Units of the hidden layer.
    """

    def __init__(self, shape: Shape = (1, 8, 8), classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(math.prod(shape), width)
        self.head = nn.Linear(width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of features [batch, channels * height * width]."""
        return self.head(torch.relu(self.inner(features)))


BUILT_IN: dict[str, Callable[..., nn.Module]] = {"cnn": SmallCNN, "mlp": SmallMLP}


def load_host(name: str, *, shape: Shape | None = None, classes: int = 10, entropy: int = 0) -> nn.Module:
    """A host by name, freshly initialised; torch's global generator is left as it was.

    Args:
        name: "cnn", "mlp", or "package.module:factory", a callable without arguments (or a module).
        shape: Channels, height and width of the images, for those built in; None: their default.
        classes: Classes, for those built in.
        entropy: What the initial parameters are drawn from.

    Raises:
        ArgumentError: Nothing of that name, or what it makes is no `nn.Module`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entropy)
        if name in BUILT_IN:
            return BUILT_IN[name](classes=classes, **({} if shape is None else {"shape": shape}))
        made = _referenced(name)
        made = made if isinstance(made, nn.Module) else made()
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"{name} makes a {type(made).__name__}, and an nn.Module is expected")
    return made


def wants_images(module: nn.Module) -> bool:
    """Whether the module's first layer with weights is a convolution: images go in, not flat rows."""
    weighted = (layer for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None)
    return hasattr(next(weighted, None), "kernel_size")


def _referenced(name: str) -> Any:
    place, colon, path = name.partition(":")
    if not colon or not place or not path:
        raise ArgumentError(f"{name!r} is neither {' nor '.join(BUILT_IN)}, and not 'package.module:factory'")
    try:
        found: Any = import_module(place)
    except ModuleNotFoundError as error:
        raise ArgumentError(f"{name}: there is no module {error.name!r} on Python's path") from error
    for step in path.split("."):
        if not hasattr(found, step):
            raise ArgumentError(f"{name}: {place} has no {path!r}")
        found = getattr(found, step)
    if not callable(found):
        raise ArgumentError(f"{name}: a {type(found).__name__} is no factory")
    return found
