"""Blueprints as plain data, for where there is no torch: how a kernel is drawn, and what it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from esper.errors import TraceError
from esper.program import Captured, LayerSite, Recipe, Signature, TensorType, flatten
from esper.torch_frontend.births import birth
from esper.torch_frontend.blueprints import build, copied

if TYPE_CHECKING:  # whose method this is
    from esper.torch_frontend.source import TorchSource


def recipe(
    source: TorchSource,
    blueprint: str,
    site: LayerSite,
    options: Mapping[str, Any],
    gated: bool,
    fed: Sequence[tuple[TensorType, TensorType]],
) -> Recipe:
    """A blueprint for a layer.

    Args:
        source: The host's.
        blueprint: Its name.
        site: The layer.
        options: The blueprint's options.
        gated: Whether its kernels stand behind a gate of their own.
        fed: What the layer has taken and given, of fixed sizes.

    Raises:
        UnknownBlueprintError: No such blueprint for this kind of layer.
        SeedError: The blueprint does not fit the layer.
        TraceError: A kernel that cannot be drawn, or run, without torch.
    """
    layer, blend = source.module.get_submodule(site.name), "gate" if gated else "add"
    sprout = source.sprout(blueprint, site, options, None, blend)
    kernel, entry = build(blueprint, site, options, 0, layer, blend)
    own = copied(kernel, "")
    names = tuple(name for name in sprout.params if name not in own)

    def built() -> nn.Module:
        return build(blueprint, site, options, None, layer, blend)[0]

    strange = [name for name, value in sprout.options if not _is_plain(value)]
    if strange:
        raise TraceError(f"blueprint {blueprint!r} has options that no file can hold: {strange}")
    try:
        born = birth(built, names, source.supported)
        captures = _captures(sprout.source, [pair[sprout.placement == "sequential"] for pair in fed])
    except TraceError as error:
        raise TraceError(
            f"blueprint {blueprint!r} at layer {site.name!r} cannot go where torch is not: {error}"
        ) from error
    held = {**born.constants, **sprout.source.constants}
    return Recipe(
        blueprint=blueprint,
        options=sprout.options,
        defaults=tuple(sorted(entry.options.items())),
        gated=gated,
        site=site,
        bound=entry.reads_layer,
        placement=sprout.placement,
        description=sprout.source.description,
        names=names,
        birth=born.program,
        copied=own,
        captures=captures,
        constants={name: source.exportable(tensor, f"{blueprint}: {name}") for name, tensor in held.items()},
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | complex | str)


def _captures(source: TorchSource, fed: Sequence[TensorType]) -> tuple[Captured, ...]:
    """What a kernel does with such inputs, in both modes."""
    _, tree = flatten(((0,), {}))
    calls = [Signature(tree, (kind,), train) for kind in dict.fromkeys(fed) for train in (False, True)]
    for call in calls:
        source.program(call)
    return tuple(source.captures)


def in_both_modes(source: TorchSource) -> tuple[Captured, ...]:
    """Every call captured so far, in training and in evaluation mode where it can be captured there too."""
    for signature, _ in source.captures:
        try:
            source.program(replace(signature, train=not signature.train))
        except TraceError:
            continue  # a model may be made for one of them; a call in the other says so, by this very error
    return source.captures
