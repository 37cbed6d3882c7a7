"""Which blueprints go along with a saved model, so that it can grow where torch is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, SeedError, TraceError, UnknownBlueprintError
from esper.growth.plans import DEFAULTS, sized
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import NativeKernel
from esper.program import Captured, LayerSite, Recipe, TensorType
from esper.program.feeding import fed_to
from esper.program.recipe import alike

Wanted = str | tuple[str, Mapping[str, Any]]
"""A blueprint, or a blueprint and its options."""
Blueprints = str | Sequence[Wanted] | None

ALL = "all"
_ALWAYS = "low_rank"
_Calls = Mapping[str, list[tuple[TensorType, TensorType]]]
_REFUSALS = (UnknownBlueprintError, SeedError, TraceError)


def recipes(model: MorphableModel, captures: Sequence[Captured], blueprints: Blueprints) -> tuple[Recipe, ...]:
    """The recipes of the model's kernels, and of what else is wanted for its layers.

    Args:
        model: The model.
        captures: Its calls, which show what its layers take and give.
        blueprints: What is wanted, see `esper.save`.

    Raises:
        ArgumentError: `blueprints` is no such thing.
        UnknownBlueprintError, SeedError, TraceError: What was asked for by name fits no layer, or a kernel of the
            model's cannot go along.
    """
    source, found = model.structure.source, _Found()
    sites = [model.structure.site(site.name) for site in model.structure.sites]
    # One recipe serves all layers that are alike, so it has the calls of all of them.
    calls = {site.name: list(fed_to(captures, site.name)) for site in sites}
    fed = {site.name: [pair for other in sites if alike(site, other) for pair in calls[other.name]] for site in sites}
    for recipe in source.recipes:
        found.add(recipe)
    _add_those_of_kernels(model, found, calls, fed)
    asked = _asked(blueprints)
    refused: dict[int, Exception] = {}
    fitting: set[int] = set()
    for site in sites:
        for place, (name, options) in enumerate(asked if asked is not None else _offered(model, site, blueprints)):
            if not fed[site.name] or found.has(name, site, options):
                fitting |= {place} if fed[site.name] else set()
                continue
            try:
                found.add(source.recipe(name, site, options, False, fed[site.name]))
                fitting.add(place)
            except _REFUSALS as error:
                refused[place] = error
    for place, error in refused.items():
        if asked is not None and place not in fitting:
            raise error
    return tuple(found.recipes)


def _add_those_of_kernels(model: MorphableModel, found: _Found, calls: _Calls, fed: _Calls) -> None:
    for kernel in model.structure.kernels:
        if isinstance(kernel.source, NativeKernel):
            continue  # it is built by Flax wherever its blueprint is registered
        given = [*calls[kernel.layer], *fed[kernel.layer]]
        if not given:
            raise TraceError(f"none of the calls that can be saved shows what layer {kernel.layer!r} takes")
        gated = kernel.blend == "gate"
        found.add(model.structure.source.recipe(kernel.blueprint, kernel.site, dict(kernel.options), gated, given))


class _Found:
    """The recipes found so far; one serves all layers that are alike."""

    def __init__(self) -> None:
        self.recipes: list[Recipe] = []

    def has(self, name: str, site: LayerSite, options: Mapping[str, Any]) -> bool:
        return any(
            recipe.blueprint == name and not recipe.gated and recipe.serves(site) and recipe.offers(options)
            for recipe in self.recipes
        )

    def add(self, recipe: Recipe) -> None:
        known = ((one.blueprint, one.options, one.gated) for one in self.recipes if one.serves(recipe.site))
        if (recipe.blueprint, recipe.options, recipe.gated) not in known:
            self.recipes.append(recipe)


def _asked(blueprints: Blueprints) -> list[tuple[str, Mapping[str, Any]]] | None:
    """What was asked for by name; None: nothing was."""
    if blueprints is None or blueprints == ALL:
        return None
    if isinstance(blueprints, str):
        raise ArgumentError(
            f"blueprints is {ALL!r}, None, or a sequence of names or (name, options), not {blueprints!r}"
        )
    pairs = [(one, {}) if isinstance(one, str) else one for one in blueprints]
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Mapping) for pair in pairs):
        raise ArgumentError(f"a blueprint is a name or (name, options): {blueprints!r:.80}")
    return pairs


def _offered(model: MorphableModel, site: LayerSite, blueprints: Blueprints) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What goes along unasked: all there is, or what esper grows by where nobody says otherwise."""
    known = model.structure.source.blueprints(site.kind)
    if blueprints == ALL:
        yield from ((name, {}) for name in known)
        return
    default = DEFAULTS.get(site.kind)
    for name in known:
        if name in (_ALWAYS, default):
            yield name, {}
    try:
        if default in known:
            yield default, sized(model.structure.source, site, default, TamiyoSettings().rank)
    except _REFUSALS:
        return  # it does not fit this layer, at any size
