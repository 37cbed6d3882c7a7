"""Recipes for kernels, each written once as an `nn.Module`. Importing this package fills the catalogue."""

from esper.torch_frontend.blueprints import attentive, convolutional, dense, structural
from esper.torch_frontend.blueprints.registry import Blueprint, blueprint, build, copied, names_for, zero_output

__all__ = [
    "Blueprint",
    "attentive",
    "blueprint",
    "build",
    "convolutional",
    "copied",
    "dense",
    "names_for",
    "structural",
    "zero_output",
]
