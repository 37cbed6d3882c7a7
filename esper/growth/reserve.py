"""Kernels in reserve: arrays that wait in a DORMANT seed, so that germination there is data only; and their removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

import jax

from esper.errors import ArgumentError, SeedError, TargetError
from esper.growth.birth import Newborn
from esper.growth.optimizer import Optimizer, migrate, restarted
from esper.growth.verbs import conceive
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.slots import place, seed_row, seed_state, with_kernel, without_kernel
from esper.lifecycle import SeedLifecycleState
from esper.program import LayerSite

State = TypeVar("State")
Recipe = str | tuple[str, Mapping[str, Any]]
"""A blueprint, or a blueprint and its options."""
Reserve = Mapping[str, Recipe | Sequence[Recipe]]
"""By name, glob over names, or kind of layer, such as "Linear": a recipe for one seed, or one for each of several."""

_IDLE = (SeedLifecycleState.DORMANT, SeedLifecycleState.CULLED)


def reserve(
    model: MorphableModel,
    opt_state: State,
    *,
    layer: str,
    seed: int = 0,
    blueprint: str,
    options: Mapping[str, Any] | None = None,
    blend: str = "add",
    tx: Optimizer | None = None,
) -> tuple[MorphableModel, State]:
    """Puts a kernel's arrays into a dormant seed in advance; the seed stays DORMANT, the outputs do not change.

    To `germinate` the same recipe there (blueprint, options, blend) is then data only: the arrays get the values
    drawn, the kernel's optimiser state starts afresh, nothing is compiled. Another recipe takes the place of the one
    in reserve, and means a compile as it does in an empty seed. `compact` removes what is in reserve.

    Args:
        model: The model.
        opt_state: An optax state for `model.params`, or None.
        layer: Name of a KasminaLayer.
        seed: Which of its seeds.
        blueprint: Name of a recipe for this kind of layer.
        options: The recipe's options.
        blend: How the kernel will join the layer's output.
        tx: As in `germinate`.

    Returns:
        The model with the arrays, and the optimiser state with their entries.

    Raises:
        UnknownLayerError: No such layer.
        UnknownBlueprintError: No such blueprint for this kind of layer.
        SeedError: The seed is not DORMANT; else as `germinate`.
        OptimizerStateError: As `germinate`.

    Example:
        >>> import esper, jax, torch
        >>> model = esper.wrap(torch.nn.Linear(3, 2))
        >>> model, _ = esper.reserve(model, None, layer="", blueprint="low_rank")
        >>> grown, _ = esper.germinate(model, None, layer="", blueprint="low_rank", key=jax.random.key(0))
        >>> grown.structure == model.structure
        True
    """
    state = seed_state(model, seed_row(model.structure, layer, seed), seed)
    if state is not SeedLifecycleState.DORMANT:
        raise SeedError(f"{place(layer, seed)} is {state.name}, and only a DORMANT seed takes a kernel in reserve")
    # Nobody meets these values: a kernel that germinates brings its own.
    key = jax.random.key(0)
    made = conceive(model, layer=layer, seed=seed, blueprint=blueprint, key=key, options=options, blend=blend)
    newborn = cast(Newborn, made)  # without an initialiser nothing is found unworthy
    held = with_kernel(model, newborn.kernel, newborn.params)
    return held, restarted(opt_state, model.params, held.params, (layer, seed), tx=tx)


def compact(model: MorphableModel, opt_state: State, *, tx: Optimizer | None = None) -> tuple[MorphableModel, State]:
    """Removes the arrays of every kernel that is CULLED or in reserve, and their traces in the optimiser state.

    Outputs stay as they are, to the last bit; the next step is compiled for the smaller structure. Where there is
    nothing to remove, the model and the state themselves are returned. `tx` is as in `cull`.

    Raises:
        SeedError: The model is abstract, inside a JAX transformation.
        OptimizerStateError: As `cull`.
    """
    emptied = model
    for kernel in model.structure.kernels:
        row = model.structure.row(kernel.layer)
        if seed_state(model, row, kernel.seed) in _IDLE:
            emptied = without_kernel(emptied, kernel.layer, kernel.seed)
            emptied = emptied.replace(seeds=emptied.seeds.set(row, kernel.seed, kernel_id=0))
    if emptied is model:
        return model, opt_state
    return emptied, migrate(opt_state, model.params, emptied.params, tx=tx)


def asleep(model: MorphableModel) -> dict[str, dict[int, jax.Array]]:
    """Whether each kernel sleeps: {layer: {seed: bool}}, for `per_kernel(...).update(..., asleep=...)`; data only.

    Those sleep that no step can change for good: in reserve, announced (LOADING), or CULLED with the arrays in place.
    """
    states = (*_IDLE, SeedLifecycleState.LOADING)
    found: dict[str, dict[int, jax.Array]] = {}
    for kernel in model.structure.kernels:
        state = model.seeds.lifecycle[model.structure.row(kernel.layer), kernel.seed]
        sleeps = state == int(states[0])
        for other in states[1:]:
            sleeps |= state == int(other)
        found.setdefault(kernel.layer, {})[kernel.seed] = sleeps
    return found


def reserved(model: MorphableModel, wanted: Reserve) -> MorphableModel:
    """The model with kernels in reserve in each layer that `wanted` means, from its first free seed on.

    Raises:
        ArgumentError: `wanted` is no such mapping.
        TargetError: An entry matches no layer.
        SeedError: A layer has too few free seeds, or a recipe does not fit it.
    """
    if not isinstance(wanted, Mapping):
        raise ArgumentError(f'reserve maps layers to recipes, such as {{"Linear": "low_rank"}}; it is {wanted!r:.80}')
    sites = model.structure.sites
    for pattern, given in wanted.items():
        meant = [site for site in sites if _means(pattern, site)]
        if not meant:
            known = ", ".join(f"{site.name!r} ({site.kind})" for site in sites) or "no layers that can grow"
            raise TargetError(f"reserve: nothing matches {pattern!r}; the model has {known}")
        for site in meant:
            for blueprint, options in _recipes(given):
                seed = _free(model, site.name)
                model, _ = reserve(model, None, layer=site.name, seed=seed, blueprint=blueprint, options=options)
    return model


def _means(pattern: str, site: LayerSite) -> bool:
    return pattern in (site.kind, site.type) or site.name == pattern or fnmatchcase(site.name, pattern)


def _recipes(given: Recipe | Sequence[Recipe]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    several = isinstance(given, Sequence) and not isinstance(given, str) and not _is_pair(given)
    for recipe in given if several else [given]:
        if isinstance(recipe, str):
            yield recipe, {}
        elif _is_pair(recipe):
            yield cast(tuple[str, Mapping[str, Any]], recipe)
        else:
            raise ArgumentError(f"reserve: a recipe is a blueprint's name or (name, options), not {recipe!r:.80}")


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str) and isinstance(given[1], Mapping)


def _free(model: MorphableModel, layer: str) -> int:
    held = model.structure.seeds_per_layer
    taken = {kernel.seed for kernel in model.structure.kernels if kernel.layer == layer}
    free = next((seed for seed in range(held) if seed not in taken), None)
    if free is None:
        raise SeedError(
            f"reserve: layer {layer!r} has {held} seeds, and more kernels are asked for; raise seeds_per_layer"
        )
    return free
