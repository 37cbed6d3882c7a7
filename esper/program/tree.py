"""Nested inputs and outputs as leaves plus a hashable structure.

One description serves both halves: the frontend flattens what a torch module takes and returns,
the backend rebuilds the same containers around JAX arrays. It belongs to neither framework's
pytree registry, so any dataclass works, including Hugging Face's `ModelOutput`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

LEAF = "leaf"


@dataclass(frozen=True)
class Tree:
    """The structure of a nested value: containers, their keys, and where the leaves go.

    Attributes:
        kind: "leaf", "none", "tuple", "list", "slice", "dict", "ordered_dict", "namedtuple" or "dataclass".
        children: One Tree for each member.
        keys: Dictionary keys or field names, in order.
        path: "module:qualname" of a namedtuple or dataclass, else "".
        cls: The class itself while it is known in this process; never written to a file.
    """

    kind: str
    children: tuple[Tree, ...] = ()
    keys: tuple[Any, ...] = ()
    path: str = ""
    cls: type | None = field(default=None, compare=False)

    @property
    def leaves(self) -> int:
        """How many leaves a value of this structure has."""
        return 1 if self.kind == LEAF else sum(child.leaves for child in self.children)

    def paths(self, prefix: str = "") -> Iterator[str]:
        """A readable place for each leaf, such as `[0].mask`."""
        if self.kind == LEAF:
            yield prefix
        for key, child in zip(self._member_keys(), self.children, strict=True):
            yield from child.paths(f"{prefix}{key}")

    def _member_keys(self) -> list[str]:
        if self.kind in ("namedtuple", "dataclass", "slice"):
            return [f".{key}" for key in self.keys]
        return [f"[{key!r}]" for key in (self.keys or range(len(self.children)))]


Opener = Callable[[Any], tuple[Any, ...] | None]


def flatten(value: Any, open_unknown: Opener | None = None) -> tuple[list[Any], Tree]:
    """Takes `value` apart.

    Args:
        value: Any nesting of tuples, lists, slices, dicts, namedtuples and dataclasses; the rest are leaves.
        open_unknown: Given a would-be leaf, returns a plain container that stands for it, or None.

    Returns:
        The leaves in order, and the structure that `unflatten` needs.
    """
    leaves: list[Any] = []
    return leaves, _describe(value, leaves, open_unknown)


def unflatten(tree: Tree, leaves: list[Any]) -> Any:
    """Builds the value again around new leaves; the inverse of `flatten`."""
    if len(leaves) != tree.leaves:
        raise ValueError(f"{tree.leaves} leaves expected, {len(leaves)} given")
    return _build(tree, iter(leaves))


def _describe(value: Any, leaves: list[Any], open_unknown: Opener | None) -> Tree:
    if value is None:
        return Tree("none")
    parts = _take_apart(value)
    if parts is None and open_unknown is not None:
        plain = open_unknown(value)
        if plain is not None:
            return _describe(plain[0], leaves, open_unknown)
    if parts is None:
        leaves.append(value)
        return Tree(LEAF)
    kind, members, keys, cls = parts
    children = tuple(_describe(member, leaves, open_unknown) for member in members)
    path = f"{cls.__module__}:{cls.__qualname__}" if cls else ""
    return Tree(kind, children, tuple(keys), path, cls)


def _take_apart(value: Any) -> tuple[str, list[Any], list[Any], type | None] | None:
    cls = type(value)
    if dataclasses.is_dataclass(cls):
        # A ModelOutput is a dataclass and a mapping that leaves out what is None.
        names = list(value.keys()) if isinstance(value, Mapping) else [f.name for f in dataclasses.fields(cls)]
        return "dataclass", [getattr(value, name) for name in names], names, cls
    fields = getattr(cls, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        return "namedtuple", list(value), list(fields), cls
    if isinstance(value, list):
        return "list", list(value), [], None
    if isinstance(value, slice):
        return "slice", [value.start, value.stop, value.step], ["start", "stop", "step"], None
    if isinstance(value, OrderedDict):
        return "ordered_dict", list(value.values()), list(value), None
    if isinstance(value, Mapping):
        return "dict", list(value.values()), list(value), None
    if isinstance(value, tuple):  # torch.Size and torch.return_types behave as tuples
        return "tuple", list(value), [], None
    return None


def _build(tree: Tree, leaves: Iterator[Any]) -> Any:
    if tree.kind == LEAF:
        return next(leaves)
    if tree.kind == "none":
        return None
    members = [_build(child, leaves) for child in tree.children]
    if tree.kind in ("tuple", "list"):
        return tuple(members) if tree.kind == "tuple" else members
    if tree.kind == "slice":
        return slice(*members)
    named = dict(zip(tree.keys, members, strict=True))
    if tree.kind == "ordered_dict":
        return OrderedDict(named)
    cls = tree.cls or _known_class(tree)
    if tree.kind == "dict" or cls is None:
        return named
    return _fill(cls, named) if tree.kind == "dataclass" else cls(*members)


def _fill(cls: type, named: dict[str, Any]) -> Any:
    """A dataclass instance; fields that are not set by `__init__` are set afterwards."""
    given = {f.name for f in dataclasses.fields(cls) if f.init}
    made = cls(**{name: value for name, value in named.items() if name in given})
    for name in named.keys() - given:
        object.__setattr__(made, name, named[name])
    return made


def _known_class(tree: Tree) -> type | None:
    """The class that a Tree names, if its module is loaded already: reading a file never imports anything.

    What a file names is called, so only a namedtuple or a dataclass with just these fields is taken for one.
    """
    module_name, _, qualname = tree.path.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # and no module's `__getattr__` runs
    is_one = isinstance(found, type)
    if tree.kind == "namedtuple":
        is_known = is_one and issubclass(found, tuple) and getattr(found, "_fields", None) == tree.keys
        return found if is_known else _anonymous(tree.path, tree.keys)
    names = {own.name for own in dataclasses.fields(found)} if is_one and dataclasses.is_dataclass(found) else set()
    # A mapping, such as Hugging Face's outputs, leaves out what is None.
    is_known = names == set(tree.keys) or (is_one and issubclass(found, Mapping) and names.issuperset(tree.keys))
    return found if is_known and names else None


@lru_cache(maxsize=256)
def _anonymous(path: str, fields: tuple[str, ...]) -> type:
    """A namedtuple like one whose class is not there."""
    return namedtuple(path.rpartition(".")[2].rpartition(":")[2], fields)
