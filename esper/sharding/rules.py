"""Rules: from the name and the shape of an array to how it is split, and why. Nothing here touches an array."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeGuard

from jax.sharding import PartitionSpec

from esper.errors import ShardingError

Axes = tuple[str, ...]
Shape = tuple[int, ...]
Sizes = Mapping[str, int]
"""How many devices there are along each axis of a mesh."""


@dataclass(frozen=True)
class Decision:
    """How an array is split.

    Attributes:
        spec: The axes that each of its dimensions is split over; without trailing Nones, so that equal ones are equal.
        rules: The rules that said so; none: no rule is about this array.
        notes: What a rule would have split and did not, and why.
    """

    spec: PartitionSpec = field(default_factory=PartitionSpec)
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def split(self, dimension: int, axes: Axes, rule: str) -> Decision:
        """The same, with one more dimension split."""
        entries = [*self.spec, *[None] * (dimension + 1 - len(self.spec))]
        entries[dimension] = entry_of(axes)
        return replace(self, spec=trimmed(PartitionSpec(*entries)), rules=(*self.rules, rule))

    def noted(self, note: str) -> Decision:
        """The same, with one more note."""
        return replace(self, notes=(*self.notes, note))


class Preset(Protocol):
    """A way of splitting that knows what to do with any array; where it cannot, it leaves a note."""

    @property
    def axes(self) -> Axes:
        """The axes of the mesh that it splits over."""
        ...

    @property
    def batch(self) -> Axes:
        """Those of them that batches are split over."""
        ...

    def refined(self, decided: Decision, name: str, shape: Shape, sizes: Sizes) -> Decision:
        """What was decided so far, with its own split."""
        ...


@dataclass(frozen=True)
class Pattern:
    """A regular expression on names, and the split of every array whose name it is found in."""

    regex: str
    spec: PartitionSpec

    def __str__(self) -> str:
        return f"{self.regex!r}"

    def problems(self, shape: Shape, sizes: Sizes) -> list[str]:
        """What keeps an array of this shape from being split so."""
        if len(self.spec) > len(shape):
            return [f"{self.spec} has {len(self.spec)} dimensions, and the array {len(shape)}"]
        used = axes_of(self.spec)
        twice = [f"{self.spec} names {axis!r} twice" for axis in dict.fromkeys(used) if used.count(axis) > 1]
        found = [(size, entry, _count(entry, sizes)) for size, entry in zip(shape, self.spec, strict=False)]
        uneven = [
            f"{size} is not divisible by the {count} of {entry!r}" for size, entry, count in found if size % count
        ]
        return twice + uneven


@dataclass(frozen=True)
class Rules:
    """What decides about every array: the first pattern that is found in its name, or else all presets together.

    Attributes:
        patterns: In order.
        presets: In the order in which they split; those that take whatever dimension is left come last.
    """

    patterns: tuple[Pattern, ...]
    presets: tuple[Preset, ...]

    @property
    def batch(self) -> Axes:
        """The axes that the presets split batches over."""
        return tuple(dict.fromkeys(axis for preset in self.presets for axis in preset.batch))

    @property
    def axes(self) -> Axes:
        """Every axis that is named."""
        named = [axis for pattern in self.patterns for axis in axes_of(pattern.spec)]
        return tuple(dict.fromkeys(named + [axis for preset in self.presets for axis in preset.axes]))

    def pattern(self, name: str) -> Pattern | None:
        """The first pattern that is found in a name."""
        return next((pattern for pattern in self.patterns if re.search(pattern.regex, name)), None)

    def decide(self, name: str, shape: Shape, sizes: Sizes) -> Decision:
        """How an array is split; where a pattern does not fit it, not at all."""
        pattern = self.pattern(name)
        if pattern is not None:
            problems = pattern.problems(shape, sizes)
            if problems:
                return Decision(rules=(str(pattern),), notes=tuple(problems))
            return Decision(trimmed(pattern.spec), (str(pattern),))
        decided = Decision()
        for preset in self.presets:
            decided = preset.refined(decided, name, shape, sizes)
        return decided


def rules_of(given: Any) -> Rules:
    """The rules that a user's argument means: a preset, pairs of a regular expression and a spec, or some of each.

    Raises:
        ShardingError: It is something else.
    """
    parts = list(_parts(given))
    presets = [part for part in parts if not isinstance(part, Pattern)]
    presets.sort(key=lambda preset: getattr(preset, "takes_what_is_left", False))
    return Rules(tuple(part for part in parts if isinstance(part, Pattern)), tuple(presets))


def axes_of(spec: PartitionSpec) -> list[str]:
    """The axes that a spec names, in order."""
    return [axis for entry in spec for axis in _names(entry)]


def entry_of(axes: Axes) -> str | Axes:
    """What stands in a spec for a dimension that is split over these axes."""
    return axes[0] if len(axes) == 1 else axes


def trimmed(spec: PartitionSpec) -> PartitionSpec:
    """The spec without Nones at its end: what JAX gives for a result, and finds a compiled step by."""
    entries = list(spec)
    while entries and not _names(entries[-1]):
        entries.pop()
    return PartitionSpec(*entries)


def _parts(given: Any) -> list[Pattern | Preset]:
    if hasattr(given, "refined"):
        return [given]
    if isinstance(given, Mapping):
        return [_pattern(regex, spec) for regex, spec in given.items()]
    if _is_pair(given):
        return [_pattern(*given)]
    if isinstance(given, Sequence) and not isinstance(given, str | PartitionSpec):
        return [part for item in given for part in _parts(item)]
    raise ShardingError(
        "rules are a preset such as esper.sharding.fsdp('data'), pairs of a regular expression and a PartitionSpec, or "
        f"a sequence of these; this is {given!r:.80}"
    )


def _is_pair(given: Any) -> TypeGuard[tuple[str, Any]]:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str)


def _pattern(regex: Any, spec: Any) -> Pattern:
    if not isinstance(regex, str) or not isinstance(spec, PartitionSpec | None):
        raise ShardingError(f"a rule is a regular expression and a PartitionSpec or None, not {regex!r}: {spec!r:.80}")
    try:
        re.compile(regex)
    except re.error as error:
        raise ShardingError(f"{regex!r} is no regular expression: {error}") from error
    return Pattern(regex, PartitionSpec() if spec is None else spec)


def _names(entry: Any) -> Axes:
    """The axes of one dimension of a spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _count(entry: Any, sizes: Sizes) -> int:
    """How many parts a dimension is split into."""
    return math.prod(sizes[axis] for axis in _names(entry))
