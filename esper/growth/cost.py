"""What a kernel costs: counted before it is there, nothing is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from esper.jax_backend.flax_kernels import sprouted
from esper.jax_backend.flops import flops
from esper.jax_backend.interchange import adopt
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import Kernel, KernelSource
from esper.program import LayerSite


@dataclass(frozen=True)
class Cost:
    """What a kernel takes.

    Attributes:
        parameters: How many it has.
        bytes: Memory they take; gradients and optimiser states come on top.
        flops: Floating-point operations of its forward for one example (or one row, while no capture has shown
            what the layer takes).
    """

    parameters: int
    bytes: int
    flops: int


def cost(
    model: MorphableModel,
    *,
    layer: str,
    blueprint: str,
    options: Mapping[str, Any] | None = None,
    blend: str = "add",
) -> Cost:
    """What a kernel of that recipe would cost in that layer.

    Args:
        model: The model; it is left as it is.
        layer: Name of a KasminaLayer.
        blueprint: Name of a recipe.
        options: The recipe's options.
        blend: How it would join.

    Raises:
        UnknownBlueprintError: No such blueprint for this kind of layer.
        SeedError: The recipe does not fit the layer, or has no such option.
    """
    site = model.structure.site(layer)
    made = sprouted(model.structure.source, blueprint, site, options or {}, None, blend)
    arrays = {name: adopt(made.source, tensor, f"{layer}: {name}") for name, tensor in made.params.items()}
    return _counted(made.source, arrays, site, made.placement)


def kernel_cost(model: MorphableModel, kernel: Kernel) -> Cost:
    """What a kernel that is there costs."""
    arrays = model.params["kernels"][kernel.layer][kernel.seed]
    return _counted(kernel.source, arrays, kernel.site, kernel.placement)


def _counted(source: KernelSource, arrays: dict[str, jax.Array], site: LayerSite, placement: str) -> Cost:
    one = jax.ShapeDtypeStruct(*site.fed(placement))
    return Cost(
        parameters=sum(array.size for array in arrays.values()),
        bytes=sum(array.nbytes for array in arrays.values()),
        flops=flops(partial(kernel_output, source, train=False), arrays, one),
    )
