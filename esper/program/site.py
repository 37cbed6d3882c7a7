"""What a kernel needs to know of the layer it joins, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from esper.errors import SeedError

Size = int | str

_NAMED = ("1d", "2d", "3d")
_IN = ("in_features", "in_channels", "embedding_dim", "num_features", "num_channels")
_OUT = ("out_features", "out_channels", "embedding_dim", "num_features", "num_channels")


@dataclass(frozen=True)
class LayerSite:
    """A layer of the user's model that can hold seeds.

    Attributes:
        name: Dotted path, "" for the root.
        kind: Class name of the first base class that torch itself defines, such as "Linear".
        type: Class name of the layer.
        dtype: torch's name of the dtype of its parameters.
        attributes: The layer's own geometry, such as ("in_features", 784).
        input: Shape of what it takes, symbolic sizes as text; empty until a capture has shown it.
        output: Shape of what it gives, likewise.
    """

    name: str
    kind: str
    type: str
    dtype: str
    attributes: tuple[tuple[str, Any], ...] = ()
    input: tuple[Size, ...] = field(default=(), compare=False)  # seen, not what the layer is
    output: tuple[Size, ...] = field(default=(), compare=False)

    def __getitem__(self, attribute: str) -> Any:
        """An attribute of the layer by torch's name."""
        return dict(self.attributes)[attribute]

    def __contains__(self, attribute: str) -> bool:
        """Whether the layer has such an attribute."""
        return attribute in dict(self.attributes)

    @property
    def positions(self) -> int:
        """How many axes of positions follow the features on axis 1; 0: the features are the last axis."""
        known = dict(self.attributes)
        if self.kind[-2:] in _NAMED and self.kind != "BatchNorm1d":
            return int(self.kind[-2])
        if "normalized_shape" in known or "in_features" in known or "embedding_dim" in known:
            return 0
        rank = len(self.known_shape("output"))
        return rank - 2 if rank > 3 or "num_features" in known or "num_channels" in known else 0

    @property
    def features_in(self) -> int:
        """Features of what a kernel beside the layer is fed; for an embedding those of its output."""
        return self._features(_IN, "input")

    @property
    def features_out(self) -> int:
        """Features of what the layer gives, and a kernel with it."""
        return self._features(_OUT, "output")

    def _features(self, names: tuple[str, ...], side: str) -> int:
        known = dict(self.attributes)
        if "normalized_shape" in known:
            return int(known["normalized_shape"][-1])
        found = next((known[name] for name in names if isinstance(known.get(name), int)), None)
        if found is None:
            found = self.known_shape(side)[1 if self.positions else -1]
        if not isinstance(found, int):
            raise SeedError(f"layer {self.name!r} ({self.type}) has {found} features, a size that is not fixed")
        return found

    def known_shape(self, side: str) -> tuple[Size, ...]:
        """The shape of its "input" or "output".

        Raises:
            SeedError: No capture has shown it yet.
        """
        shape = getattr(self, side)
        if not shape:
            raise SeedError(
                f"what layer {self.name!r} ({self.type}) takes and gives is not known yet: call the model once, "
                "or wrap it with example_inputs"
            )
        return shape

    def fed(self, placement: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of what a kernel reads for one example; sizes that are not fixed count as 1."""
        indices = self.kind == "Embedding" and placement == "parallel"
        shape = self.output if placement == "sequential" else self.input
        if not shape:
            features = self.features_out if placement == "sequential" else self.features_in
            shape = (1,) if indices else (1, features, *(1,) * self.positions)
        sizes = tuple(size if isinstance(size, int) else 1 for size in (1, *shape[1:]))
        return sizes, "int32" if indices else self.dtype
