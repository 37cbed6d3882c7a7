"""Which formulation is fastest on a CPU, by shapes alone: the only place for that decision.

The numbers are from many shapes on one machine; between neighbours of a threshold the difference is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esper.jax_backend.platform.convolution import chunks, depthwise, library, products, winograd
from esper.jax_backend.platform.convolution.grouped import by_group
from esper.jax_backend.platform.convolution.patches import tiles
from esper.jax_backend.platform.convolution.spec import Sizes, Spec

Formulation = Callable[..., jax.Array]
_FEW, _MANY = 4, 200  # outputs of an image
_GROUPS = 32  # more of them take too long to compile one by one
_TILED = 64  # outputs of an image, from which on a weight gradient is better taken by tiles
_THIN, _NARROW = 32, 64  # channels
_SOME, _MUCH = 140e6, 350e6  # products, of a convolution with narrow activations and of another
_CACHED = 2**24  # elements of the cotangents times their channels, up to which XLA's own weight gradient is fast
_COLOURS, _TAPS = 3, 9  # channels of a first layer's input, and places that it reads, up to which patches are small
_WASTE = 1.2  # outputs that tiles cover, beside those that there are


class Group(NamedTuple):
    """What a group of channels meets.

    Attributes:
        batch: How many images.
        inputs: Channels of the input.
        outputs: Channels of the output.
        dtype: Of both.
    """

    batch: Any
    inputs: int
    outputs: int
    dtype: Any


def convolve(spec: Spec, group: Group) -> Formulation:
    """Patches times weights, or an equal."""
    if _few_groups(spec, group):
        return by_group(convolve(spec._replace(groups=1), group), (-1, 0), -1)
    return _plain(spec, group, spec.space, 2 * group.outputs - 1).convolve


def input_gradient(spec: Spec, group: Group) -> Formulation:
    """The window slides over the cotangent."""
    if _few_groups(spec, group):
        return by_group(input_gradient(spec._replace(groups=1), group), (-1, 0), -1)
    return _plain(spec, group, spec.spread, 4 * group.inputs).input_gradient


def weight_gradient(spec: Spec, group: Group) -> Formulation:
    """XLA's own formulation is good where the maps are small or have one dimension."""
    if _few_groups(spec, group):
        return by_group(weight_gradient(spec._replace(groups=1), group), (-1, -1), 0)
    few = 6 * min(group.inputs, group.outputs)
    how = _plain(spec, group, spec.space, few)
    if how is winograd and math.prod(spec.results) < _TILED:
        how = _untiled(spec, group, few)
    large = _fixed((group.batch, *spec.results)) and math.prod(spec.results) > _MANY
    large = large and group.batch * math.prod(spec.results) * group.outputs**2 > _CACHED
    if large and spec.rank > 1 and how not in (depthwise, winograd) and not _no_overlap(spec):
        return chunks.weight_gradient
    return how.weight_gradient


def _plain(spec: Spec, group: Group, slid_over: Sizes, few: int) -> Any:
    """The formulation of all groups at once.

    Args:
        spec: What it is.
        group: What each group meets.
        slid_over: What the window slides over.
        few: So many outputs of all images are few beside what the weight has: patches are then quickly made.
    """
    if not _fixed(spec.space):
        return library
    if spec.groups > 1:
        return depthwise if group.inputs == 1 else products
    # XLA has no library for windows larger than what they slide over, and takes a hundred times longer.
    beyond = any(n <= reach for n, reach in zip(slid_over, spec.reach, strict=True))
    if beyond or _no_overlap(spec) or math.prod(spec.results) <= _FEW:
        return products
    return winograd if _tiled(spec, group) else _untiled(spec, group, few)


def _untiled(spec: Spec, group: Group, few: int) -> Any:
    if spec.rank == 2 and group.inputs <= _COLOURS and math.prod(spec.kernel) <= _TAPS:
        return products
    images = group.batch if spec.rank == 2 and isinstance(group.batch, int) else math.inf
    return products if images * math.prod(spec.results) <= few else library


def _tiled(spec: Spec, group: Group) -> bool:
    """Whether a tile's products are fewer than what it takes to make them."""
    if not (winograd.applies(spec) and group.dtype == jnp.float32 and isinstance(group.batch, int)):
        return False
    covered = math.prod(-(-size // 2) * 2 for size in spec.results)
    if covered > _WASTE * math.prod(spec.results):
        return False
    thin = min(group.inputs, group.outputs)
    products = 9 * group.batch * math.prod(spec.results) * group.inputs * group.outputs
    return thin >= _THIN and products >= (_SOME if thin <= _NARROW else _MUCH)


def _few_groups(spec: Spec, group: Group) -> bool:
    return 1 < spec.groups <= _GROUPS and group.inputs > 1


def _no_overlap(spec: Spec) -> bool:
    """Patches are then no larger than the input."""
    return tiles(spec) or (not any(spec.reach) and not any(map(any, spec.pads)))


def _fixed(sizes: Sizes) -> bool:
    return all(isinstance(size, int) for size in sizes)
