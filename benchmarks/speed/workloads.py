"""What is timed: seven networks that esper is tuned on, and others that it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.models.bert import Bert
from benchmarks.speed.models.convnext import ConvNeXt
from benchmarks.speed.models.gpt import Gpt
from benchmarks.speed.models.mixer import Mixer
from benchmarks.speed.models.mlp import mlp
from benchmarks.speed.models.mobilenet import MobileNet
from benchmarks.speed.models.recurrent import GruTagger, LstmClassifier
from benchmarks.speed.models.resnet import Basic, Bottleneck, ResNet
from benchmarks.speed.models.signal import SignalNet
from benchmarks.speed.models.unet import UNet
from benchmarks.speed.models.vit import ViT

Batch = tuple[tuple[Tensor, ...], Tensor]
"""What the module is called with, and the labels."""


@dataclass(frozen=True)
class Workload:
    """A network and a batch.

    Attributes:
        name: On the command line.
        about: Network and batch in a few words.
        family: The file of the same network in plain JAX (`idiomatic/`).
        build: Makes the module.
        draw: Makes a batch.
        rate: AdamW's learning rate. Three steps must change the loss by far more than the tolerance that contenders are
            compared with, or the comparison would not see gradients; with much more, equal programs drift apart:
            Adam divides by the gradient's size, so noise moves a parameter as far as a slope does.
        class_axis: Where the logits have classes.
        images: Whether the module is convolutional over images, so that torch's `channels_last` is worth trying.
        tuned: Whether esper is tuned on it.
    """

    name: str
    about: str
    family: str
    build: Callable[[], nn.Module]
    draw: Callable[[], Batch]
    rate: float = 1e-4
    class_axis: int = -1
    images: bool = False
    tuned: bool = True


@dataclass(frozen=True)
class Problem:
    """What all contenders start from: one module, in training mode, and one batch."""

    workload: Workload
    module: nn.Module
    inputs: tuple[Tensor, ...]
    labels: Tensor


def prepared(workload: Workload, seed: int = 0) -> Problem:
    """The module with its first weights, and the batch; the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = workload.build().train()
        return Problem(workload, module, *workload.draw())


def arrays(shape: tuple[int, ...], classes: int) -> Batch:
    """Normal inputs, one label each."""
    return (torch.randn(shape),), torch.randint(classes, shape[:1])


def pixels(shape: tuple[int, ...], classes: int) -> Batch:
    """Normal images, a label for each pixel."""
    return (torch.randn(shape),), torch.randint(classes, (shape[0], *shape[2:]))


def words(shape: tuple[int, int], count: int, classes: int) -> Batch:
    """Sequences of words, a label for each word."""
    return (torch.randint(count, shape),), torch.randint(classes, shape)


def padded(shape: tuple[int, int], count: int, classes: int) -> Batch:
    """Sequences of words of several lengths with a mask that is true where words are; one label each."""
    lengths = torch.randint(shape[1] // 2, shape[1] + 1, shape[:1])
    mask = torch.arange(shape[1]) < lengths[:, None]
    return (torch.randint(count, shape), mask), torch.randint(classes, shape[:1])


_PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 4, (1024, 2))

_TUNED = (
    Workload(
        "mlp",
        "MLP 784-1024-1024-10, batch 256",
        "mlp",
        partial(mlp, (784, 1024, 1024, 10)),
        partial(arrays, (256, 784), 10),
    ),
    Workload(
        "resnet18",
        "ResNet-18 with ImageNet's stem, 64x64, batch 32",
        "resnet",
        partial(ResNet, Basic, (2, 2, 2, 2), 64, "imagenet", 1000),
        partial(arrays, (32, 3, 64, 64), 1000),
        rate=1e-5,
        images=True,
    ),
    Workload(
        "resnet18_cifar",
        "ResNet-18 with CIFAR's stem, 32x32, batch 32",
        "resnet",
        partial(ResNet, Basic, (2, 2, 2, 2), 64, "cifar", 10),
        partial(arrays, (32, 3, 32, 32), 10),
        rate=1e-5,
        images=True,
    ),
    Workload(
        "convnext",
        "ConvNeXt, depths 3-3-9-3, widths 40-80-160-320, 64x64, batch 32",
        "convnext",
        partial(ConvNeXt, (3, 3, 9, 3), (40, 80, 160, 320), 100),
        partial(arrays, (32, 3, 64, 64), 100),
        images=True,
    ),
    Workload(
        "vit",
        "ViT-Tiny, 224x224, patches of 16, batch 8",
        "vit",
        partial(ViT, 224, 16, 192, 12, 3, 1000),
        partial(arrays, (8, 3, 224, 224), 1000),
    ),
    Workload(
        "gpt",
        "GPT, 6 layers, width 384, 6 heads, 128 tokens of 8192 words, batch 8",
        "gpt",
        partial(Gpt, 8192, 128, 384, 6, 6),
        partial(words, (8, 128), 8192, 8192),
    ),
    Workload(
        "lstm",
        "LSTM, 2 layers of 256, 64 steps of 128 features, batch 32",
        "lstm",
        partial(LstmClassifier, 128, 256, 2, 10),
        partial(arrays, (32, 64, 128), 10),
        rate=1e-3,
    ),
)

_OTHERS = (
    Workload(
        "resnet50",
        "ResNet-50, 96x96, batch 8",
        "resnet",
        partial(ResNet, Bottleneck, (3, 4, 6, 3), 64, "imagenet", 1000),
        partial(arrays, (8, 3, 96, 96), 1000),
        rate=1e-6,
        images=True,
        tuned=False,
    ),
    Workload(
        "unet",
        "U-Net, widths 16 to 128, 64x64, batch 8",
        "unet",
        partial(UNet, 16, 3, 5),
        partial(pixels, (8, 3, 64, 64), 5),
        rate=1e-3,
        class_axis=1,
        images=True,
        tuned=False,
    ),
    Workload(
        "mobilenet",
        "MobileNet, depthwise 3x3 and 1x1, 96x96, batch 16",
        "mobilenet",
        partial(MobileNet, 32, _PAIRS, 100),
        partial(arrays, (16, 3, 96, 96), 100),
        rate=1e-5,
        images=True,
        tuned=False,
    ),
    Workload(
        "bert",
        "BERT-like encoder with masks, 4 layers, width 256, 4 heads, 128 tokens, batch 8",
        "bert",
        partial(Bert, 8192, 128, 256, 4, 4, 10),
        partial(padded, (8, 128), 8192, 10),
        tuned=False,
    ),
    Workload(
        "gru",
        "GRU tagger in both directions, 2 layers of 128, 48 words, batch 32",
        "gru",
        partial(GruTagger, 4096, 128, 2, 20),
        partial(words, (32, 48), 4096, 20),
        rate=1e-3,
        tuned=False,
    ),
    Workload(
        "conv1d",
        "Dilated 1-D convolutions, width 64, 2048 samples of 4 channels, batch 16",
        "signal",
        partial(SignalNet, 4, 64, (1, 2, 4, 8), 10),
        partial(arrays, (16, 4, 2048), 10),
        tuned=False,
    ),
    Workload(
        "mixer",
        "MLP-Mixer, 8 blocks of 64 patches of width 256, 64x64, batch 16",
        "mixer",
        partial(Mixer, 64, 8, 256, 8, 100),
        partial(arrays, (16, 3, 64, 64), 100),
        tuned=False,
    ),
)

WORKLOADS = {workload.name: workload for workload in (*_TUNED, *_OTHERS)}
