"""Catalogues of blueprints, one for each framework that kernels are written in; no name stands in two of them.

A recipe is opaque here: what it returns is for the framework that it is written in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from inspect import Parameter, signature
from typing import Any

from esper.errors import ArgumentError, SeedError, UnknownBlueprintError
from esper.program.site import LayerSite

Recipe = Callable[..., Any]

ANY = "*"
"""The kind that stands for every layer of one tensor in and one out."""


@dataclass(frozen=True)
class Blueprint:
    """A recipe that builds a kernel for a layer.

    Attributes:
        name: Its name in the catalogue.
        recipe: Takes the LayerSite, then options by name; returns a module of one tensor in, one out.
        kinds: The layer kinds it is for, such as ("Linear",) or ("Conv*",); "*" is any.
        placement: What the kernel is fed: "parallel" the layer's input, "sequential" its output.
        unless: The layer kinds it is not for, though `kinds` would have them.
        twin: For kernels that are not written in torch, what makes a module of torch's of one; see `Twin`.
    """

    name: str
    recipe: Recipe
    kinds: tuple[str, ...]
    placement: str
    unless: tuple[str, ...] = ()
    twin: Recipe | None = None

    def serves(self, kind: str) -> bool:
        """Whether it is for layers of that kind."""
        return any(fnmatchcase(kind, held) for held in self.kinds) and not any(
            fnmatchcase(kind, held) for held in self.unless
        )

    @property
    def options(self) -> dict[str, Any]:
        """The recipe's options with their defaults."""
        return {parameter.name: parameter.default for parameter in self._parameters() if _has_default(parameter)}

    @property
    def needs(self) -> tuple[str, ...]:
        """Parameters without a default after the site, which the framework gives."""
        return tuple(parameter.name for parameter in self._parameters() if not _has_default(parameter))

    @property
    def reads_layer(self) -> bool:
        """Whether the recipe takes the host's layer."""
        return bool(self.needs)

    def _parameters(self) -> list[Parameter]:
        return list(signature(self.recipe).parameters.values())[1:]


_FRAMEWORKS: dict[str, dict[str, list[Blueprint]]] = {}


@dataclass(frozen=True)
class Catalogue:
    """The blueprints of one framework.

    Attributes:
        framework: Its name; equal names are the same catalogue.
    """

    framework: str

    def __contains__(self, name: str) -> bool:
        """Whether there is a blueprint of that name, for whatever kind of layer."""
        return name in self._entries

    def add(self, entry: Blueprint) -> None:
        """Registers a blueprint; one name may have several recipes, for different kinds of layers.

        Raises:
            ArgumentError: The name is taken for one of these kinds, or in another framework; or the placement unknown.
        """
        if entry.placement not in ("parallel", "sequential"):
            raise ArgumentError(f"placement is 'parallel' or 'sequential', not {entry.placement!r}")
        other = next((f for f, entries in _FRAMEWORKS.items() if f != self.framework and entry.name in entries), None)
        if other is not None:
            raise ArgumentError(
                f"there is a blueprint {entry.name!r} already, written in {other}; give the one in {self.framework} "
                "another name"
            )
        taken = {kind for held in self._entries.get(entry.name, ()) for kind in held.kinds} & set(entry.kinds)
        if taken:
            raise ArgumentError(f"there is a blueprint {entry.name!r} for {', '.join(sorted(taken))} already")
        self._entries.setdefault(entry.name, []).append(entry)

    def names_for(self, kind: str) -> tuple[str, ...]:
        """The blueprints for layers of this kind, in order of registration."""
        return tuple(name for name in self._entries if self.entry(name, kind))

    def entry(self, name: str, kind: str) -> Blueprint | None:
        """The recipe of that name for that kind: one that names it goes before one for any kind."""
        serving = [entry for entry in self._entries.get(name, ()) if entry.serves(kind)]
        return min(serving, key=lambda entry: ANY in entry.kinds, default=None)

    def find(self, name: str, site: LayerSite, options: Mapping[str, Any]) -> Blueprint:
        """The recipe of that name for a layer, which has these options.

        Raises:
            UnknownBlueprintError: No such blueprint in any framework, or not for this kind of layer.
            SeedError: An option the recipe does not have.
        """
        if name not in self:
            known = [held for entries in _FRAMEWORKS.values() for held in entries]
            raise UnknownBlueprintError(f"no blueprint {name!r}; there are: {', '.join(known)}")
        entry = self.entry(name, site.kind)
        if entry is None:
            held = self._entries[name]
            kinds = dict.fromkeys("others" if kind == ANY else kind for entry in held for kind in entry.kinds)
            raise UnknownBlueprintError(
                f"blueprint {name!r} is for {', '.join(kinds)}, and layer {site.name!r} is a {site.kind}; "
                f"blueprints for it: {', '.join(blueprints_for(site.kind)) or 'none'}"
            )
        unknown = options.keys() - entry.options.keys()
        if unknown:
            raise SeedError(f"blueprint {name!r} has no option {sorted(unknown)}; its options: {entry.options}")
        return entry

    @property
    def _entries(self) -> dict[str, list[Blueprint]]:
        return _FRAMEWORKS.setdefault(self.framework, {})


def blueprints_for(kind: str) -> tuple[str, ...]:
    """The blueprints for layers of this kind, whatever they are written in."""
    return tuple(name for framework in _FRAMEWORKS for name in Catalogue(framework).names_for(kind))


def _has_default(parameter: Parameter) -> bool:
    return parameter.default is not Parameter.empty
