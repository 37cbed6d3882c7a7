"""The ready-made rules: data parallel, fully sharded, tensor parallel."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from esper.errors import ShardingError
from esper.sharding.rules import Axes, Decision, Preset, Shape, Sizes, axes_of

SMALL = 2**14
"""Elements below which `fsdp` leaves an array whole: to gather it at every use would cost more than it saves."""

COLUMN = (
    r"q|k|v|qkv|query|key|value|query_key_value|[qkv]_proj|[qkv]_lin|qkv_proj|in_proj|c_attn|Wqkv",
    r"fc1|fc_in|c_fc|up|up_proj|gate|gate_proj|gate_up_proj|linear1|lin1|w1|w3|wi|wi_[01]|intermediate\.dense|"
    r"dense_h_to_4h",
)
"""Modules whose outputs are split: what goes into attention, and into the wide part of a feed-forward network."""

ROW = (
    r"o|o_proj|out_proj|out_lin|c_proj|proj|dense|Wo",
    r"fc2|fc_out|down|down_proj|linear2|lin2|w2|wo|output\.dense|dense_4h_to_h",
)
"""Modules whose inputs are split: those that read what the former give."""

EMBEDDING = (
    r"embed|embedding|embeddings|embed_tokens|(word|tok|token)_(embedding|embeddings|embed)|wte|shared|lm_head",
)
"""Modules with a row for every word, which are split by words."""


@dataclass(frozen=True)
class DataParallel:
    """See `data_parallel`."""

    axes: Axes

    @property
    def batch(self) -> Axes:
        """Batches are all that is split."""
        return self.axes

    def refined(self, decided: Decision, name: str, shape: Shape, sizes: Sizes) -> Decision:
        """Every device has every array."""
        return decided


@dataclass(frozen=True)
class FullySharded:
    """See `fsdp`."""

    axes: Axes
    min_elements: int
    takes_what_is_left: bool = True

    @property
    def batch(self) -> Axes:
        """Batches are split over the same axes."""
        return self.axes

    def refined(self, decided: Decision, name: str, shape: Shape, sizes: Sizes) -> Decision:
        """The largest dimension that is not split yet and can be."""
        if not shape or math.prod(shape) < self.min_elements:
            return decided
        if set(self.axes) & set(axes_of(decided.spec)):
            return decided.noted(f"fsdp: {_said(self.axes)} is taken")
        parts = math.prod(sizes[axis] for axis in self.axes)
        taken = [dimension for dimension, entry in enumerate(decided.spec) if entry is not None]
        free = [at for at, size in enumerate(shape) if at not in taken and size % parts == 0]
        if not free:
            return decided.noted(f"fsdp: no dimension left that {parts} divides")
        return decided.split(max(free, key=lambda at: (shape[at], -at)), self.axes, "fsdp")


@dataclass(frozen=True)
class TensorParallel:
    """See `tensor_parallel`."""

    axis: str
    column: tuple[str, ...]
    row: tuple[str, ...]
    embedding: tuple[str, ...]

    @property
    def axes(self) -> Axes:
        """The one."""
        return (self.axis,)

    @property
    def batch(self) -> Axes:
        """Every device along the axis sees the whole batch."""
        return ()

    def refined(self, decided: Decision, name: str, shape: Shape, sizes: Sizes) -> Decision:
        """By what the module is called."""
        module = re.sub(r"[._](weight|bias)$", "", name)
        for kind, dimension, patterns in (
            ("column", 0, self.column),
            ("row", 1, self.row),
            ("embedding", 0, self.embedding),
        ):
            if _is_named(module, patterns):
                return self._split(decided, kind, dimension, shape, sizes[self.axis])
        return decided

    def _split(self, decided: Decision, kind: str, dimension: int, shape: Shape, parts: int) -> Decision:
        if dimension >= len(shape):  # the bias of a row-split layer is added once, after the sum
            return decided
        if shape[dimension] % parts:
            return decided.noted(f"tensor_parallel: {kind} dimension {shape[dimension]} is not divisible by {parts}")
        return decided.split(dimension, self.axes, f"tensor_parallel {kind}")


def data_parallel(axis: str | Sequence[str]) -> Preset:
    """Every device has the whole model and a part of each batch.

    Args:
        axis: Axis of the mesh, or several.
    """
    return DataParallel(_axes(axis))


def fsdp(axis: str | Sequence[str], *, min_elements: int = SMALL) -> Preset:
    """Every device has a part of each batch, and of each large array, in its largest dimension that can be split.

    Args:
        axis: Axis of the mesh, or several, which then count as one.
        min_elements: Arrays of fewer elements stay whole, as do those that have no dimension that can be split.
    """
    if isinstance(min_elements, bool) or not isinstance(min_elements, int) or min_elements < 0:
        raise ShardingError(f"fsdp: min_elements is a whole number of at least 0, not {min_elements!r}")
    return FullySharded(_axes(axis), min_elements)


def tensor_parallel(
    axis: str, *, column: Sequence[str] = COLUMN, row: Sequence[str] = ROW, embedding: Sequence[str] = EMBEDDING
) -> Preset:
    """Layers are split by their outputs or inputs, embeddings by words, as the names of their modules say.

    Which names are listed decides about speed alone: XLA inserts whatever communication a split asks for.

    Args:
        axis: Axis of the mesh.
        column: Regular expressions on the last parts of a module's path: layers whose outputs are split, the first
            dimension of weight and bias. The defaults are those names that are usual in PyTorch.
        row: Layers whose inputs are split, the second dimension of the weight.
        embedding: Layers with a row for every word, split by words.
    """
    given = {"column": column, "row": row, "embedding": embedding}
    for name, patterns in given.items():
        if isinstance(patterns, str):
            raise ShardingError(f"tensor_parallel: {name} is a sequence of regular expressions, not {patterns!r}")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ShardingError(f"tensor_parallel: {pattern!r} is no regular expression: {error}") from error
    if not isinstance(axis, str):
        raise ShardingError(f"tensor_parallel: axis is the name of one axis of the mesh, not {axis!r}")
    return TensorParallel(axis, tuple(column), tuple(row), tuple(embedding))


def _axes(given: str | Sequence[str]) -> Axes:
    axes = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not axes or not all(isinstance(axis, str) for axis in axes):
        raise ShardingError(f"a preset takes the name of an axis of the mesh, or several, not {given!r}")
    return axes


def _is_named(module: str, patterns: Sequence[str]) -> bool:
    return any(re.search(rf"(?:^|\.)(?:{pattern})$", module) for pattern in patterns)


def _said(axes: Axes) -> str:
    return ", ".join(map(repr, axes))
