"""A kernel that takes part in its layer's forward, for whoever puts it there in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from esper.program.site import Size


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
    """

    layer: str
    seed: int
    placement: str
    blend: str
    alpha: float
    params: Mapping[str, Any] = field(repr=False)
    source: Any = field(repr=False)
    input: tuple[Size, ...] = ()
