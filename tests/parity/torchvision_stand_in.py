"""What timm imports of torchvision, which need not be there: timm's models use none of it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType

from torch import nn

_NAMES = {
    "torchvision": (),
    "torchvision.datasets": ("CIFAR10", "CIFAR100", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder"),
    "torchvision.ops": (),
    "torchvision.ops.misc": (),
    "torchvision.transforms": ("ToTensor", "PILToTensor"),
    "torchvision.transforms.functional": (),
}


class FrozenBatchNorm2d(nn.Module):
    """timm asks modules whether they are of this type."""


class InterpolationMode(Enum):
    """timm's data loading names these."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """While it lasts `import torchvision` finds names without behaviour; nothing happens if torchvision is installed.

    It leaves no trace: whoever asks for torchvision afterwards is told that it is absent.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    made = _modules()
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def _modules() -> dict[str, ModuleType]:
    made = {name: ModuleType(name) for name in _NAMES}
    for name, module in made.items():
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
        for attribute in _NAMES[name]:
            setattr(module, attribute, type(attribute, (), {"__module__": name}))
    made["torchvision.ops.misc"].FrozenBatchNorm2d = FrozenBatchNorm2d
    made["torchvision.transforms.functional"].InterpolationMode = InterpolationMode
    return made
