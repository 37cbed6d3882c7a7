"""The catalogue of blueprints: how one is registered, found and built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from esper.errors import SeedError, UnknownBlueprintError
from esper.program import LayerSite

Recipe = Callable[..., nn.Module]


@dataclass(frozen=True)
class Blueprint:
    """A recipe that builds a kernel for a layer.

    Attributes:
        name: Its name in the catalogue.
        recipe: Takes the LayerSite, then options by name; returns an `nn.Module` of one tensor in, one out.
        kinds: The layer kinds it is for, such as ("Linear",).
        placement: What the kernel is fed: "parallel" the layer's input, "sequential" its output.
    """

    name: str
    recipe: Recipe
    kinds: tuple[str, ...]
    placement: str

    @property
    def options(self) -> dict[str, Any]:
        """The recipe's options with their defaults."""
        found = list(signature(self.recipe).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in found}


_CATALOGUE: dict[str, Blueprint] = {}


def blueprint(name: str, *, kinds: tuple[str, ...], placement: str = "parallel") -> Callable[[Recipe], Recipe]:
    """Registers the decorated recipe.

    A kernel must be exactly zero at birth and alive: zero the output weights of its last layer, and leave
    the rest as torch initialises it.

    Raises:
        ValueError: The name is taken, or the placement unknown.
    """
    if placement not in ("parallel", "sequential"):
        raise ValueError(f"placement is 'parallel' or 'sequential', not {placement!r}")

    def register(recipe: Recipe) -> Recipe:
        if name in _CATALOGUE:
            raise ValueError(f"there is a blueprint {name!r} already")
        _CATALOGUE[name] = Blueprint(name, recipe, kinds, placement)
        return recipe

    return register


def names_for(kind: str) -> tuple[str, ...]:
    """The blueprints for layers of this kind, in order of registration."""
    return tuple(name for name, entry in _CATALOGUE.items() if kind in entry.kinds)


def build(name: str, site: LayerSite, options: Mapping[str, Any], entropy: int) -> tuple[nn.Module, Blueprint]:
    """A new kernel for `site`.

    Args:
        name: A blueprint's name.
        site: The layer it joins.
        options: The recipe's options.
        entropy: What its initial parameters are drawn from; torch's global generator is left as it was.

    Raises:
        UnknownBlueprintError: No such blueprint, or not for this kind of layer.
        SeedError: An option the recipe does not have, or a kernel that keeps buffers.
    """
    if name not in _CATALOGUE:
        raise UnknownBlueprintError(f"no blueprint {name!r}; there are: {', '.join(_CATALOGUE)}")
    entry = _CATALOGUE[name]
    if site.kind not in entry.kinds:
        fitting = ", ".join(names_for(site.kind)) or "none"
        raise UnknownBlueprintError(
            f"blueprint {name!r} is for {', '.join(entry.kinds)}, and layer {site.name!r} is a {site.kind}; "
            f"blueprints for it: {fitting}"
        )
    unknown = options.keys() - entry.options.keys()
    if unknown:
        raise SeedError(f"blueprint {name!r} has no option {sorted(unknown)}; its options: {entry.options}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entropy)
        kernel = entry.recipe(site, **options)
    if any(True for _ in kernel.buffers()):
        raise SeedError(f"blueprint {name!r} keeps buffers, which kernels cannot; use a norm without statistics")
    return kernel.to(getattr(torch, site.dtype)), entry


def zero_output(layer: nn.Module) -> nn.Module:
    """The layer with its weight and bias set to 0: a kernel that ends in it adds nothing at birth."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
