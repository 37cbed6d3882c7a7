"""Recipes for kernels, each written once as an `nn.Module`. Importing this package fills the catalogue."""

from esper.torch_frontend.blueprints import attentive, convolutional, dense, structural
from esper.torch_frontend.blueprints.registry import Blueprint, blueprint, build, copied, names_for, sizes, zero_output

__all__ = [
    "Blueprint",
    "attentive",
    "blueprint",
    "build",
    "convolutional",
    "copied",
    "dense",
    "names_for",
    "sizes",
    "structural",
    "zero_output",
]
