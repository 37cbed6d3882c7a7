"""Which blueprint each layer would grow by, with which options, and what it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from esper.growth.cost import cost
from esper.growth.policy import Plan
from esper.jax_backend.model import MorphableModel
from esper.program import LayerSite

DEFAULTS: dict[str, str] = {"Linear": "mlp", "Conv2d": "conv"}
"""Layer kind to blueprint, where the settings say nothing; other kinds do not grow by themselves."""

_SIZES = ("rank", "width")


def blueprint_for(site: LayerSite, chosen: Mapping[str, str] | None) -> str | None:
    """The blueprint for a layer: by its name, else by its kind, else the default of its kind; None: none.

    Args:
        site: The layer.
        chosen: Layer kind, layer name or glob of layer names to blueprint; names go before globs.
    """
    chosen = chosen or {}
    by_glob = next((made for pattern, made in chosen.items() if fnmatchcase(site.name, pattern)), None)
    return chosen.get(site.name) or by_glob or chosen.get(site.kind) or DEFAULTS.get(site.kind)


def plans(model: MorphableModel, chosen: Mapping[str, str] | None, size: int, blend: str = "add") -> dict[str, Plan]:
    """What each layer would grow by; layers that nothing fits are left out.

    Args:
        model: The model.
        chosen: As for `blueprint_for`.
        size: Rank or width of the kernels that have one.
        blend: How they join their layers.

    Raises:
        UnknownBlueprintError: A chosen blueprint does not exist, or is not for that layer.
    """
    named = {site.name: (site, blueprint_for(site, chosen)) for site in model.structure.sites}
    return {name: _plan(model, site, blueprint, size, blend) for name, (site, blueprint) in named.items() if blueprint}


def _plan(model: MorphableModel, site: LayerSite, blueprint: str, size: int, blend: str) -> Plan:
    source, found = model.structure.source, model.structure.site(site.name)
    known = dict(source.sprout(blueprint, found, {}, 0).options)
    options = {name: size for name in _SIZES if name in known}
    needed = cost(model, layer=site.name, blueprint=blueprint, options=options, blend=blend)
    return Plan(blueprint, tuple(options.items()), needed.parameters, needed.flops, needed.bytes, blend)
