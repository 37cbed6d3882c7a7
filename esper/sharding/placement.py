"""Placement: rules on a mesh, the static part of a sharded model. It keeps the model's arrays where they belong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, get_abstract_mesh

from esper.errors import ShardingError
from esper.jax_backend.devices import put
from esper.jax_backend.interchange import is_traced
from esper.jax_backend.model import MorphableModel
from esper.program import Program
from esper.sharding.rules import Axes, Decision, Rules, entry_of


@dataclass(frozen=True)
class Placement:
    """Where the arrays of a model lie.

    Attributes:
        mesh: The devices, all axes Auto: XLA's partitioner follows the arrays.
        rules: How each array is split.
        batch: The axes that the first dimension of inputs is split over.
    """

    mesh: Mesh
    rules: Rules
    batch: Axes

    def decide(self, name: str, shape: tuple[int, ...]) -> Decision:
        """How the array of that name is split."""
        return self.rules.decide(name, shape, self.mesh.shape)

    def sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        """Where the array of that name lies."""
        return NamedSharding(self.mesh, self.decide(name, shape).spec)

    @property
    def everywhere(self) -> NamedSharding:
        """A whole copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batches(self, examples: int | None = None) -> NamedSharding:
        """Where batches of so many examples lie: split if they can be, else a whole copy on every device."""
        parts = math.prod(self.mesh.shape[axis] for axis in self.batch)
        if not self.batch or (examples is not None and examples % parts):
            return self.everywhere
        return NamedSharding(self.mesh, PartitionSpec(entry_of(self.batch)))

    def shardings(self, model: MorphableModel) -> MorphableModel:
        """Where each array of the model lies, in its place; taps are left out."""
        kernels = {
            layer: {seed: self._kernel(layer, seed, arrays) for seed, arrays in held.items()}
            for layer, held in model.params["kernels"].items()
        }
        return model.replace(
            params={"host": self._named(model.params["host"]), "kernels": kernels},
            buffers=self._named(model.buffers),
            seeds=jax.tree.map(lambda _: self.everywhere, model.seeds),
            constants={name: self.everywhere for name in model.constants},
            taps={},
        )

    def placed(self, model: MorphableModel) -> MorphableModel:
        """A copy of the model with its arrays where they belong."""
        return jax.tree.map(put, model.replace(taps={}), self.shardings(model)).replace(taps=model.taps)

    def constrained(self, model: MorphableModel) -> MorphableModel:
        """The model, within a compiled function, with its arrays and so their gradients kept where they belong."""
        explicit = [axis for axis, kind in _context() if kind is AxisType.Explicit]
        if explicit:
            raise ShardingError(
                f"the mesh that jax.set_mesh made current has Explicit axes ({', '.join(explicit)}), and a sharded "
                "model leaves communication to XLA: make that mesh with axis_types=(AxisType.Auto,) * n, or call the "
                "model outside of it"
            )
        kept = lax.with_sharding_constraint(model.replace(taps={}), self.shardings(model))
        return kept.replace(taps=model.taps)

    def kept(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Parameters and buffers by name, within a compiled function, kept likewise."""
        return lax.with_sharding_constraint(dict(arrays), self._named(arrays))

    def split(self, program: Program, tensors: Sequence[jax.Array]) -> list[jax.Array]:
        """The inputs, within a compiled function, with the first dimension of those that have the batch there split."""
        first = [spec.type.shape[0] if spec.type.shape else None for spec in program.user_inputs]
        symbolic = [size for size in first if isinstance(size, str)]
        # A Program for fixed sizes does not say which is the batch.
        batch = Counter(symbolic or [size for size in first if size is not None]).most_common(1)
        return [
            lax.with_sharding_constraint(tensor, self.batches(tensor.shape[0]))
            if batch and size == batch[0][0] and isinstance(tensor.shape[0], int)
            else tensor
            for size, tensor in zip(first, tensors, strict=True)
        ]

    def kernel(self, layer: str, seed: int, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The arrays of a kernel that enters, placed."""
        shardings = self._kernel(layer, seed, arrays)
        return {n: array if is_traced(array) else put(array, shardings[n]) for n, array in arrays.items()}

    def _named(self, arrays: Mapping[str, jax.Array]) -> dict[str, NamedSharding]:
        return {name: self.sharding(name, array.shape) for name, array in arrays.items()}

    def _kernel(self, layer: str, seed: int, arrays: Mapping[str, jax.Array]) -> dict[str, NamedSharding]:
        return {name: self.sharding(kernel_name(layer, seed, name), a.shape) for name, a in arrays.items()}


def kernel_name(layer: str, seed: int, name: str) -> str:
    """What rules know a kernel's parameter by."""
    return ".".join(part for part in (layer, "grown", str(seed), name) if part)


def _context() -> list[tuple[str, AxisType]]:
    mesh = get_abstract_mesh()
    return list(zip(mesh.axis_names, mesh.axis_types, strict=True))
