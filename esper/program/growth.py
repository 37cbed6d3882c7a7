"""A kernel that takes part in its layer's forward, for whoever puts it there in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esper.program.site import LayerSite, Size


@dataclass(frozen=True)
class Twin:
    """What makes a module of torch's of a kernel that is written in another framework.

    Attributes:
        recipe: Takes the site, {name: tensor} and the options.
        site: The layer that the kernel was built for.
        options: The options that it was built with.
        placement: What it is fed, "parallel" or "sequential".
        gated: Whether it stands behind a gate of its own: then its arrays are under "kernel." and "gate.".
    """

    recipe: Callable[..., Any]
    site: LayerSite
    options: tuple[tuple[str, Any], ...]
    placement: str
    gated: bool


@dataclass(frozen=True)
class Growth:
    """A kernel to be put beside its layer.

    Attributes:
        layer: The layer's name.
        seed: Which of its seeds holds the kernel.
        placement: What it is fed, "parallel" or "sequential".
        blend: How it joins.
        alpha: Its weight.
        params: Its arrays by torch name.
        source: Where it came from.
        input: Shape of what the layer reads, symbolic sizes as text; empty if it is not known.
        blueprint: Name of its recipe.
        twin: What makes a module of torch's of it; None: its source does.
    """

    layer: str
    seed: int
    placement: str
    blend: str
    alpha: float
    params: Mapping[str, Any] = field(repr=False)
    source: Any = field(repr=False)
    input: tuple[Size, ...] = ()
    blueprint: str = ""
    twin: Twin | None = field(default=None, repr=False)
