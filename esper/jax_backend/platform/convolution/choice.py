"""Which formulation is fastest on a CPU, by shapes alone: the only place for that decision.

The numbers are from many shapes on one machine; between neighbours of a threshold the difference is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from esper.jax_backend.platform.convolution import canonical, chunks, depthwise, products
from esper.jax_backend.platform.convolution.grouped import by_group
from esper.jax_backend.platform.convolution.patches import tiles
from esper.jax_backend.platform.convolution.spec import Sizes, Spec

Formulation = Callable[..., jax.Array]
_FEW, _MANY = 4, 200  # outputs of an image
_GROUPS = 32  # more of them take too long to compile one by one


def convolve(spec: Spec, inputs: int) -> Formulation:
    """For a group of so many input channels."""
    if _few_groups(spec, inputs):
        return by_group(convolve(spec._replace(groups=1), inputs), (-1, 0), -1)
    return _plain(spec, inputs, spec.space).convolve


def input_gradient(spec: Spec, inputs: int) -> Formulation:
    """Likewise; the window slides over the cotangent."""
    if _few_groups(spec, inputs):
        return by_group(input_gradient(spec._replace(groups=1), inputs), (-1, 0), -1)
    return _plain(spec, inputs, spec.spread).input_gradient


def weight_gradient(spec: Spec, inputs: int, batch: Any) -> Formulation:
    """Likewise; XLA's own formulation is good where the maps are small."""
    if _few_groups(spec, inputs):
        return by_group(weight_gradient(spec._replace(groups=1), inputs, batch), (-1, -1), 0)
    how = _plain(spec, inputs, spec.space)
    large = _fixed((batch, *spec.results)) and math.prod(spec.results) > _MANY
    if large and how is not depthwise and not _no_overlap(spec):
        return chunks.weight_gradient
    return how.weight_gradient


def _plain(spec: Spec, inputs: int, slid_over: Sizes) -> Any:
    if not _fixed(spec.space):
        return canonical
    if spec.groups > 1:
        return depthwise if inputs == 1 else products
    # XLA has no library for windows larger than what they slide over, and takes a hundred times longer.
    beyond = any(n <= reach for n, reach in zip(slid_over, spec.reach, strict=True))
    if beyond or _no_overlap(spec) or math.prod(spec.results) <= _FEW:
        return products
    return canonical


def _few_groups(spec: Spec, inputs: int) -> bool:
    return 1 < spec.groups <= _GROUPS and inputs > 1


def _no_overlap(spec: Spec) -> bool:
    """Patches are then no larger than the input."""
    return tiles(spec) or (not any(spec.reach) and not any(map(any, spec.pads)))


def _fixed(sizes: Sizes) -> bool:
    return all(isinstance(size, int) for size in sizes)
