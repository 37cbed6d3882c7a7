"""What it takes to build and to run a kernel beside a layer, without the code that described it first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from esper.program.graph import Program
from esper.program.signature import Signature
from esper.program.site import LayerSite, Size

Captured = tuple[Signature, Program]
"""A call, and what it does."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """A blueprint for layers of one kind and shape, with certain options, as plain data.

    Attributes:
        blueprint: Its name.
        options: Its options, defaults included.
        defaults: What they are where nobody says otherwise.
        gated: Whether its kernels stand behind a gate of their own.
        site: A layer that it is for; others differ in nothing but their name.
        bound: Whether it is for that very layer, which it read.
        placement: What its kernels are fed, "parallel" or "sequential".
        description: The kernel's parts and their settings, as text.
        names: The kernel's parameters that are drawn.
        birth: Draws these parameters: a Program without inputs.
        copied: The other parameters: their names to those of the layer's own that they start from.
        captures: The kernel's calls.
        constants: What its Programs close over, by name.
    """

    blueprint: str
    options: tuple[tuple[str, Any], ...]
    defaults: tuple[tuple[str, Any], ...]
    gated: bool
    site: LayerSite
    bound: bool
    placement: str
    description: str
    names: tuple[str, ...]
    birth: Program = field(repr=False)
    copied: Mapping[str, str] = field(repr=False)
    captures: tuple[Captured, ...] = field(repr=False)
    constants: Mapping[str, Any] = field(repr=False)

    def offers(self, options: Mapping[str, Any]) -> bool:
        """Whether these options are its own, those that are left out at their defaults."""
        return dict(self.options) == {**dict(self.defaults), **options}

    def serves(self, site: LayerSite) -> bool:
        """Whether it is for this layer."""
        return alike(site, self.site) and (not self.bound or site.name == self.site.name)


def alike(one: LayerSite, other: LayerSite) -> bool:
    """Whether two layers differ in nothing but their names, for all that a blueprint sees of them."""
    return _form(one) == _form(other)


def _form(site: LayerSite) -> tuple[Any, ...]:
    """All that a blueprint sees of a layer but its name; which size a symbolic one is, nobody knows."""
    return site.kind, site.type, site.dtype, site.attributes, _fixed(site.input), _fixed(site.output)


def _fixed(shape: tuple[Size, ...]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)
