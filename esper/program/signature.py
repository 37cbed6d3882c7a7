"""What a call looks like: the structure of its inputs, the types of its tensors, its static values, its mode."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from esper.program.graph import TensorType
from esper.program.tree import Tree


@dataclass(frozen=True)
class Static:
    """A leaf of the call that is no tensor: it becomes part of the signature."""

    value: Any

    def __eq__(self, other: object) -> bool:  # 1, 1.0 and True are three different calls
        return isinstance(other, Static) and type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))


@dataclass(frozen=True)
class Signature:
    """One call of a module.

    Attributes:
        tree: Structure of `(args, kwargs)`.
        leaves: A TensorType with fixed sizes for each tensor, a Static for everything else.
        train: Training mode.
    """

    tree: Tree
    leaves: tuple[TensorType | Static, ...]
    train: bool = False

    @property
    def tensors(self) -> tuple[TensorType, ...]:
        """The types of the tensors, in leaf order."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorType))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the tensors, in leaf order."""
        return tuple(tensor.shape for tensor in self.tensors)  # type: ignore[misc]

    @property
    def family(self) -> tuple[Any, ...]:
        """What all calls that may share a Program agree on: everything but the sizes."""
        kinds = tuple((len(s.shape), s.dtype) if isinstance(s, TensorType) else s for s in self.leaves)
        return self.tree, kinds, self.train

    def batch_leaves(self) -> frozenset[int]:
        """The tensors (by place in `tensors`) whose first dimension is taken for the batch."""
        firsts = [shape[0] if shape else None for shape in self.shapes]
        sizes = Counter(size for size in firsts if size is not None)
        if not sizes:
            return frozenset()
        batch = max(sizes, key=lambda size: (sizes[size], -firsts.index(size)))
        return frozenset(place for place, size in enumerate(firsts) if size == batch)

    def __str__(self) -> str:
        places = [p.removeprefix("[0]").removeprefix("[1]") for p in self.tree.paths()]
        parts = [
            f"{p}: {leaf if isinstance(leaf, TensorType) else repr(leaf.value)}"
            for p, leaf in zip(places, self.leaves, strict=True)
        ]
        return f"({', '.join(parts)})"
