"""The catalogue of blueprints: how one is registered, found and built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from esper.errors import EsperError, SeedError
from esper.program import LayerSite
from esper.program.catalogue import ANY, Blueprint, Catalogue

Recipe = Callable[..., nn.Module]

ROWS = ("Linear", "Embedding", "LayerNorm", "RMSNorm", "Transformer*")
"""Kinds that have features last and no map."""

MAPS = ("Conv*", "*Norm2d", "*Norm3d", "InstanceNorm1d", "*Pool?d")
"""Kinds that have features on axis 1 and positions after them."""

_CATALOGUE = Catalogue("torch")


def blueprint(
    name: str, *, kinds: tuple[str, ...] = (ANY,), placement: str = "parallel", unless: tuple[str, ...] = ()
) -> Callable[[Recipe], Recipe]:
    """Registers the decorated recipe, which returns an `nn.Module`.

    A kernel must be exactly zero at birth and alive: zero the output weights of its last layer, and leave
    the rest as torch initialises it. One name may have several recipes, for different kinds of layers. A second
    parameter of a recipe without a default is the host's layer itself.
    `esper.growth.check.check_blueprint` tries a recipe on a model.

    Args:
        name: What it is called.
        kinds: Layer kinds, by the name of torch's class or a glob; "*", the default, is any that has no recipe of its
            own.
        placement: What the kernel is fed: "parallel" the layer's input, "sequential" its output.
        unless: Layer kinds it is not for, likewise.

    Raises:
        ArgumentError: The name is taken for one of these kinds, or by a kernel written in another framework; or the
            placement unknown.

    Example:
        >>> @blueprint("shift", placement="sequential")
        ... def shift(site):
        ...     return zero_output(torch.nn.Linear(site.features_out, site.features_out))
    """

    def register(recipe: Recipe) -> Recipe:
        _CATALOGUE.add(Blueprint(name, recipe, kinds, placement, unless))
        return recipe

    return register


def names_for(kind: str) -> tuple[str, ...]:
    """The blueprints for layers of this kind, in order of registration."""
    return _CATALOGUE.names_for(kind)


def build(
    name: str,
    site: LayerSite,
    options: Mapping[str, Any],
    entropy: int | None,
    layer: nn.Module,
    blend: str = "add",
) -> tuple[nn.Module, Blueprint]:
    """A new kernel for `site`.

    Args:
        name: A blueprint's name.
        site: The layer it joins.
        options: The recipe's options.
        entropy: What its initial parameters are drawn from; torch's global generator is left as it was. None: from
            that, as it is.
        layer: The layer itself, for recipes that read it.
        blend: How it will join the layer; "gate" puts the kernel behind a gate of its own.

    Raises:
        UnknownBlueprintError: No such blueprint, or not for this kind of layer.
        SeedError: An option the recipe does not have, a layer it does not fit, or a kernel that keeps buffers.
    """
    entry = _CATALOGUE.find(name, site, options)
    with torch.random.fork_rng(devices=[]):
        if entropy is not None:
            torch.manual_seed(entropy)
        kernel = _made(entry, site, options, layer, blend)
    if any(True for _ in kernel.buffers()):
        raise SeedError(f"blueprint {name!r} keeps buffers, which kernels cannot; use a norm without statistics")
    return kernel.to(getattr(torch, site.dtype)), entry


def sizes(
    name: str, site: LayerSite, options: Mapping[str, Any], layer: nn.Module, blend: str
) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Dtypes and shapes of a new kernel's parameters, which are not allocated; None: its recipe cannot do without.

    Raises:
        UnknownBlueprintError, SeedError: As `build`, where they show without memory.
    """
    entry = _CATALOGUE.find(name, site, options)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            kernel = _made(entry, site, options, layer, blend).to(getattr(torch, site.dtype))
    except Exception:  # building it for real says what it is
        return None
    return {
        name: (str(parameter.dtype).removeprefix("torch."), tuple(parameter.shape))
        for name, parameter in kernel.named_parameters()
    }


def _made(entry: Blueprint, site: LayerSite, options: Mapping[str, Any], layer: nn.Module, blend: str) -> nn.Module:
    """What a recipe makes of its options.

    Raises:
        SeedError: It can do nothing with them.
    """
    try:
        kernel = entry.recipe(site, *((layer,) if entry.reads_layer else ()), **options)
        if blend == "gate":
            kernel = Gated(kernel, site.features_out if entry.placement == "sequential" else site.features_in, site)
        return kernel
    except EsperError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise SeedError(
            f"blueprint {entry.name!r} makes no kernel for layer {site.name!r} ({site.kind}) with the options "
            f"{dict(options)}: {type(error).__name__}: {error}"[:500]
        ) from error


class Gated(nn.Module):
    """`sigmoid(gate(x)) * kernel(x)`: at every position the features of `x` say how much of the kernel comes through.

    A kernel that changes the positions is weighed by the mean of the gate over them.
    """

    def __init__(self, kernel: nn.Module, features: int, site: LayerSite) -> None:
        super().__init__()
        self.kernel, self.gate = kernel, nn.Linear(features, 1)
        self.positions = site.positions
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped like what the kernel gives."""
        rows = x.movedim(-1 - self.positions, -1)
        gate = torch.sigmoid(self.gate(rows)).movedim(-1, -1 - self.positions)
        made = self.kernel(x)
        axes = tuple(range(-self.positions, 0))
        if axes and made.shape[-self.positions :] != x.shape[-self.positions :]:
            gate = gate.mean(axes, keepdim=True)
        return gate * made


def copied(kernel: nn.Module, layer: str) -> dict[str, str]:
    """Parameters of a kernel that start from the host's: for every part with `copies`, those of the part so named."""
    found = {}
    for path, part in kernel.named_modules():
        if isinstance(name := getattr(part, "copies", None), str):
            place, prefix = (f"{path}." if path else "") + name, f"{layer}." if layer else ""
            found |= {f"{place}.{own}": prefix + own for own, _ in part.get_submodule(name).named_parameters()}
    return found


def zero_output(layer: nn.Module) -> nn.Module:
    """The layer with its weight and bias set to 0: a kernel that ends in it adds nothing at birth."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
