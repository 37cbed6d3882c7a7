"""Recipes for kernels, each written once as an `nn.Module`. Importing this package fills the catalogue."""

from esper.torch_frontend.blueprints import convolutional, dense
from esper.torch_frontend.blueprints.registry import Blueprint, blueprint, build, names_for

__all__ = ["Blueprint", "blueprint", "build", "convolutional", "dense", "names_for"]
