"""Layers as linear maps of rows: what of a layer's input each place of its output is made of.

A linear layer maps rows of features; a convolution maps rows of patches, one for each place. Everything that
is fitted to statistics works on rows and knows no layers.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from esper.errors import SeedError
from esper.program import LayerSite

_CONVOLUTIONS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}
_PADDINGS = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def is_served(site: LayerSite) -> bool:
    """Whether a kind of layer has rows here."""
    return site.kind == "Linear" or site.kind in _CONVOLUTIONS


def check_served(site: LayerSite) -> None:
    """Raises SeedError for kinds of layers that have no rows here."""
    if not is_served(site):
        raise SeedError(
            f"layer {site.name!r} is a {site.kind}; statistics are of {', '.join(['Linear', *_CONVOLUTIONS])}, so "
            "germinate it without an initialiser that needs them"
        )


def row_sizes(site: LayerSite) -> tuple[int, int]:
    """Lengths of a row of the layer's input and of one of its output."""
    if site.kind == "Linear":
        return site["in_features"], site["out_features"]
    return site["in_channels"] * math.prod(site["kernel_size"]), site["out_channels"]


def input_rows(site: LayerSite, input: Float[Array, "..."]) -> Float[Array, "rows in"]:
    """The layer's input in float32, a row for each place of its output.

    A patch is ordered as the weight is: [in_channels, *kernel_size].
    """
    input = input.astype(jnp.float32)
    if site.kind == "Linear":
        return input.reshape(-1, site["in_features"])
    padded = jnp.pad(_batched(site, input), [(0, 0), (0, 0), *_padding(site)], mode=_PADDINGS[site["padding_mode"]])
    patches = jax.lax.conv_general_dilated_patches(
        padded,
        site["kernel_size"],
        site["stride"],
        "VALID",
        rhs_dilation=site["dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1])


def output_rows(site: LayerSite, output: Float[Array, "..."]) -> Float[Array, "rows out"]:
    """The layer's output, or a gradient by it, in float32 and as rows."""
    output = output.astype(jnp.float32)
    if site.kind == "Linear":
        return output.reshape(-1, site["out_features"])
    return jnp.moveaxis(_batched(site, output), 1, -1).reshape(-1, site["out_channels"])


def _batched(site: LayerSite, images: jax.Array) -> jax.Array:
    """With the leading axis that torch lets a convolution's input be without."""
    return images if images.ndim == _CONVOLUTIONS[site.kind] + 2 else images[None]


def _padding(site: LayerSite) -> list[tuple[int, int]]:
    """Before and after, for each spatial dimension."""
    padding = site["padding"]
    if padding == "valid":
        return [(0, 0)] * _CONVOLUTIONS[site.kind]
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(site["dilation"], site["kernel_size"], strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(size, size) for size in padding]
