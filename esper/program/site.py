"""What a kernel needs to know of the layer it joins, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerSite:
    """A layer of the user's model that can hold seeds.

    Attributes:
        name: Dotted path, "" for the root.
        kind: Class name of the first base class that torch itself defines, such as "Linear".
        type: Class name of the layer.
        dtype: torch's name of the dtype of its parameters.
        attributes: The layer's own geometry, such as ("in_features", 784).
    """

    name: str
    kind: str
    type: str
    dtype: str
    attributes: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, attribute: str) -> Any:
        """An attribute of the layer by torch's name."""
        return dict(self.attributes)[attribute]
