"""The state of every seed of a model, as one structure of arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float32, Int32, UInt8, UInt32

from esper.jax_backend.interchange import is_traced
from esper.lifecycle import BLENDED, SeedLifecycleState


class SeedState(struct.PyTreeNode):
    """All seeds, shape [layers, seeds_per_layer] each; immutable, and its avals never change.

    Attributes:
        lifecycle: A `SeedLifecycleState`.
        alpha: Weight of the kernel in the layer's output, 0 to 1.
        kernel_id: 32 bits that name the kernel (0: none).
        health: Measured held-out gain of having the kernel; NaN until measured.
        age: Training steps since germination.
        last_update: The age at the last change of state.
        error_count: Failures so far.
        origin: Alpha at the last change of state, from which a ramp sets out.
        target: Alpha that a ramp leads to: 1 to blend the kernel in, 0 to take it out again.
    """

    lifecycle: UInt8[Array, "layers seeds"]
    alpha: Float32[Array, "layers seeds"]
    kernel_id: UInt32[Array, "layers seeds"]
    health: Float32[Array, "layers seeds"]
    age: Int32[Array, "layers seeds"]
    last_update: Int32[Array, "layers seeds"]
    error_count: Int32[Array, "layers seeds"]
    origin: Float32[Array, "layers seeds"]
    target: Float32[Array, "layers seeds"]

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """How a notebook shows the state: what was never measured in words, since means of nothing warn."""
        from treescope import repr_lib

        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not is_traced(self.health) and bool(jnp.isnan(self.health).all()):
            fields["health"] = "not measured"
        return repr_lib.render_object_constructor(type(self), fields, path, subtree_renderer)

    @classmethod
    def dormant(cls, layers: int, seeds_per_layer: int) -> SeedState:
        """Seeds that hold nothing."""
        shape = (layers, seeds_per_layer)
        return cls(
            lifecycle=jnp.zeros(shape, jnp.uint8),
            alpha=jnp.zeros(shape, jnp.float32),
            kernel_id=jnp.zeros(shape, jnp.uint32),
            health=jnp.full(shape, jnp.nan, jnp.float32),
            age=jnp.zeros(shape, jnp.int32),
            last_update=jnp.zeros(shape, jnp.int32),
            error_count=jnp.zeros(shape, jnp.int32),
            origin=jnp.zeros(shape, jnp.float32),
            target=jnp.ones(shape, jnp.float32),
        )

    def set(self, row: int, seed: int, **fields: Any) -> SeedState:
        """One seed's fields changed; dtypes stay as they are."""
        changed = {name: getattr(self, name).at[row, seed].set(value) for name, value in fields.items()}
        return self.replace(**changed)

    def grown_older(self) -> SeedState:
        """One training step later: every seed that holds a kernel ages."""
        used = self.lifecycle != int(SeedLifecycleState.DORMANT)
        return self.replace(age=jnp.where(used, self.age + 1, self.age))

    def blended(self) -> Bool[Array, "layers seeds"]:
        """Which seeds are in a state that joins the kernel to the layer's output, at whatever alpha."""
        return jnp.stack([self.lifecycle == int(state) for state in BLENDED]).any(0)

    def live(self) -> Bool[Array, "layers seeds"]:
        """Which seeds take part in the forward."""
        return self.blended() & (self.alpha != 0)

    def training(self) -> Bool[Array, "layers seeds"]:
        """Which seeds train in isolation."""
        return self.lifecycle == int(SeedLifecycleState.TRAINING)

    def row(self, row: int) -> SeedState:
        """The seeds of one layer, shape [seeds_per_layer] each."""
        return jax.tree.map(lambda field: field[row], self)
