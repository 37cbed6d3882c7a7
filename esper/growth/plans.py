"""Which blueprints each layer could grow by, with which options, and what each would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from esper.errors import EsperError, SeedError, UnknownBlueprintError
from esper.growth.cost import cost
from esper.growth.policy import Plan
from esper.jax_backend.flax_kernels import sprouted
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import ModuleSource
from esper.program import LayerSite

Chosen = Mapping[str, str | Sequence[str]]
"""Layer kind, layer name or glob of layer names to a blueprint or several, in order of preference."""

DEFAULTS: dict[str, str] = {"Linear": "mlp", "Conv2d": "conv"}
"""Layer kind to blueprint, where the settings say nothing; other kinds do not grow by themselves."""

_SIZES = ("rank", "width")


def blueprint_for(site: LayerSite, chosen: Chosen | None) -> str | None:
    """The first of `blueprints_for`; None: none."""
    return next(iter(blueprints_for(site, chosen)), None)


def blueprints_for(site: LayerSite, chosen: Chosen | None) -> tuple[str, ...]:
    """The blueprints for a layer: by its name, else by its kind, else the default of its kind.

    Args:
        site: The layer.
        chosen: What was chosen; names go before globs, and no blueprints (`[]`) keep a layer from growing.
    """
    chosen = chosen or {}
    globs = (pattern for pattern in chosen if fnmatchcase(site.name, pattern))
    key = site.name if site.name in chosen else next(globs, site.kind)
    found = chosen.get(key, DEFAULTS.get(site.kind, ()))
    return (found,) if isinstance(found, str) else tuple(dict.fromkeys(found))


def plans(
    model: MorphableModel, chosen: Chosen | None, size: int, blend: str = "add", init: str = "zero_output"
) -> dict[str, tuple[Plan, ...]]:
    """What each layer could grow by; layers that nothing fits are left out.

    Args:
        model: The model.
        chosen: As for `blueprints_for`. Of several, those that do not fit a layer are left out there.
        size: Rank or width of the kernels that have one.
        blend: How they join their layers.
        init: Their initialiser.

    Raises:
        UnknownBlueprintError: A blueprint does not exist, or is not for a layer that it is the only one for, or is
            for none of the layers that it was named for.
        SeedError: Likewise, of a blueprint for this kind of layer that does not fit.
    """
    found: dict[str, tuple[Plan, ...]] = {}
    fitting: set[str] = set()
    refused: dict[str, EsperError] = {}
    for site in model.structure.sites:
        named, fit = blueprints_for(site, chosen), []
        for blueprint in named:
            try:
                fit.append(_plan(model, site, blueprint, size, blend, init))
            except (UnknownBlueprintError, SeedError) as error:
                if len(named) == 1:
                    raise
                refused[blueprint] = error
        fitting |= {plan.blueprint for plan in fit}
        if fit:
            found[site.name] = tuple(fit)
    for blueprint, error in refused.items():
        if blueprint not in fitting:
            raise error
    return found


def _plan(model: MorphableModel, site: LayerSite, blueprint: str, size: int, blend: str, init: str) -> Plan:
    options = sized(model.structure.source, model.structure.site(site.name), blueprint, size)
    needed = cost(model, layer=site.name, blueprint=blueprint, options=options, blend=blend)
    return Plan(blueprint, tuple(options.items()), needed.parameters, needed.flops, needed.bytes, blend, init)


def sized(source: ModuleSource, site: LayerSite, blueprint: str, size: int) -> dict[str, int]:
    """The options by which a blueprint's kernels have this rank or width, as far as they have one."""
    known = dict(sprouted(source, blueprint, site, {}, None).options)
    return {name: size for name in _SIZES if name in known}
