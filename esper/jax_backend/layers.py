"""KasminaLayer: one layer of the user's model and the seeds it holds, as a view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flax import struct

from esper.errors import UnknownLayerError
from esper.jax_backend.seeds import SeedState
from esper.jax_backend.source import Kernel
from esper.lifecycle import SeedLifecycleState
from esper.program import LayerSite


class KasminaLayer(struct.PyTreeNode):
    """A layer that can grow.

    Attributes:
        params: Parameters of its kernels, {seed: {torch name: array}}.
        seeds: Its seeds, shape [seeds_per_layer] each.
        site: What it is: name, kind, geometry.
        kernels: The kernels its seeds hold, in order of seed.
    """

    params: dict[int, Any]
    seeds: SeedState
    site: LayerSite = struct.field(pytree_node=False)
    kernels: tuple[Kernel, ...] = struct.field(pytree_node=False)

    @property
    def name(self) -> str:
        """Dotted path in the user's model."""
        return self.site.name

    def __repr__(self) -> str:
        states = [SeedLifecycleState(int(state)).name for state in self.seeds.lifecycle]
        waits = SeedLifecycleState.DORMANT.name
        held = {k.seed: k.blueprint + " (reserved)" * (states[k.seed] == waits) for k in self.kernels}
        return f"KasminaLayer({self.name!r}, {self.site.type}, seeds={states}, kernels={held})"


class Layers(Mapping[str, KasminaLayer]):
    """A model's KasminaLayers by name, in the order of the rows of its seed state."""

    def __init__(self, layers: Mapping[str, KasminaLayer]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> KasminaLayer:
        if name not in self._layers:
            raise UnknownLayerError(name, self._layers)
        return self._layers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Layers({list(self._layers)})"
