"""What lies where, and why: a table for people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.sharding import PartitionSpec

from esper.jax_backend.model import MorphableModel
from esper.sharding.placement import Placement, kernel_name
from esper.sharding.rules import trimmed
from esper.sharding.verbs import placement_of


@dataclass(frozen=True)
class ShardedArray:
    """One array of a sharded model.

    Attributes:
        name: Torch's; of a kernel's parameter: `<layer>.grown.<seed>.<name>`.
        shape: Of the whole.
        spec: The axes that its dimensions are split over.
        rule: What decided so.
        device_bytes: What one device holds of it.
        bytes: The whole.
        notes: What would have been split and was not, and why.
    """

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    rule: str
    device_bytes: int
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ShardingReport:
    """Where the arrays of a model lie; printed, it is a table.

    Attributes:
        mesh: The size of each axis.
        batch: The axes that inputs are split over.
        arrays: Parameters, buffers and kernels, by name.
    """

    mesh: dict[str, int]
    batch: tuple[str, ...]
    arrays: tuple[ShardedArray, ...]

    @property
    def device_bytes(self) -> int:
        """What one device holds."""
        return sum(array.device_bytes for array in self.arrays)

    @property
    def bytes(self) -> int:
        """What one device would hold of the model unsharded."""
        return sum(array.bytes for array in self.arrays)

    @property
    def fallbacks(self) -> tuple[ShardedArray, ...]:
        """The arrays that a rule would have split and did not."""
        return tuple(array for array in self.arrays if array.notes)

    def __str__(self) -> str:
        rows = [("name", "shape", "spec", "rule", "bytes per device", "")]
        for array in self.arrays:
            spec = ", ".join(map(_said, array.spec)) or "whole"
            shape = "x".join(map(str, array.shape)) or "scalar"
            rows.append((array.name, shape, spec, array.rule, f"{array.device_bytes:,}", "; ".join(array.notes)))
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        mesh = " x ".join(f"{axis}={size}" for axis, size in self.mesh.items())
        share = f" ({self.device_bytes / self.bytes:.0%})" if self.bytes else ""
        return "\n".join(
            [
                f"mesh {mesh}, inputs split over {', '.join(self.batch) or 'nothing'}",
                *table,
                f"each of {math.prod(self.mesh.values())} devices holds {self.device_bytes:,} of {self.bytes:,} bytes"
                f"{share}; {len(self.fallbacks)} array(s) fell back",
            ]
        )


def explain_sharding(model: MorphableModel) -> ShardingReport:
    """Where each array of a sharded model lies, which rule said so, what it costs a device, and what fell back.

    Raises:
        ShardingError: The model is not sharded.

    Example:
        >>> import esper, jax, torch
        >>> from esper.sharding import data_parallel
        >>> model, mesh = esper.wrap(torch.nn.Linear(3, 2)), jax.make_mesh((1,), ("data",))
        >>> model = esper.shard(model, mesh, data_parallel("data"))
        >>> print(esper.explain_sharding(model))
        mesh data=1, inputs split over data
        name    shape  spec   rule  bytes per device
        weight  2x3    whole  -     24
        bias    2      whole  -     8
        each of 1 devices holds 32 of 32 bytes (100%); 0 array(s) fell back
    """
    placement = placement_of(model)
    rows = tuple(_row(placement, name, array) for name, array in _arrays(model))
    return ShardingReport(dict(placement.mesh.shape), placement.batch, rows)


def _arrays(model: MorphableModel) -> Iterator[tuple[str, jax.Array]]:
    yield from model.params["host"].items()
    yield from model.buffers.items()
    for layer, held in model.params["kernels"].items():
        for seed, arrays in held.items():
            for name, array in arrays.items():
                yield kernel_name(layer, seed, name), array


def _row(placement: Placement, name: str, array: jax.Array) -> ShardedArray:
    """What was decided, and where the array really lies."""
    decided, lies = placement.decide(name, array.shape), array.sharding
    spec = trimmed(getattr(lies, "spec", PartitionSpec()))
    notes = decided.notes if spec == decided.spec else (*decided.notes, f"was moved; the rules say {decided.spec}")
    held = math.prod(lies.shard_shape(array.shape)) * array.dtype.itemsize
    return ShardedArray(name, array.shape, spec, ", ".join(decided.rules) or "-", held, array.nbytes, notes)


def _said(entry: str | tuple[str, ...] | None) -> str:
    return "-" if entry is None else entry if isinstance(entry, str) else "*".join(entry)
