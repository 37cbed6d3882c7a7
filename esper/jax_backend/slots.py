"""A model's seeds as places for kernels: which there are, what state they are in, a kernel in and out.

What growth verbs and the model's own methods share. Optimiser states are no matter of this floor
(`esper.growth.optimizer`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from esper.errors import SeedError, UnknownLayerError
from esper.jax_backend.interchange import is_traced
from esper.jax_backend.seeds import SeedState
from esper.jax_backend.source import Kernel, Structure
from esper.lifecycle import SeedLifecycleState, check_transition
from esper.program import GRAFT

if TYPE_CHECKING:  # the model's methods are made of these functions
    from esper.jax_backend.model import MorphableModel


def place(layer: str, seed: int) -> str:
    """A seed's place, for messages."""
    return f"layer {layer!r}, seed {seed}"


def seed_row(structure: Structure, layer: str, seed: int) -> int:
    """The row of the seed state that holds the seed.

    Raises:
        UnknownLayerError: No such layer.
        SeedError: The layer has no such seed.
    """
    names = [site.name for site in structure.sites]
    if layer not in names:
        raise UnknownLayerError(layer, names)
    held = structure.seeds_per_layer
    if not 0 <= seed < held:
        has = f"has seeds 0 to {held - 1}, not {seed}" if held else "has no seeds: wrap with seeds_per_layer above 0"
        raise SeedError(f"layer {layer!r} {has}")
    return names.index(layer)


def seed_state(model: MorphableModel, row: int, seed: int) -> SeedLifecycleState:
    """The state a seed is in.

    Raises:
        SeedError: The model is abstract, inside a JAX transformation.
    """
    if is_traced(model.seeds.lifecycle):
        raise SeedError("this growth verb reads the seed's state, so it is called between steps, not inside jax.jit")
    return SeedLifecycleState(int(model.seeds.lifecycle[row, seed]))


def held_kernel(structure: Structure, layer: str, seed: int) -> Kernel | None:
    """The kernel that a seed holds."""
    return next((kernel for kernel in structure.kernels if (kernel.layer, kernel.seed) == (layer, seed)), None)


def reserved_kernels(model: MorphableModel) -> tuple[Kernel, ...]:
    """The kernels whose arrays wait in a DORMANT seed; none that can be told of a model that is abstract or a part."""
    structure, lifecycle = model.structure, model.seeds.lifecycle
    if is_traced(lifecycle) or not isinstance(lifecycle, jax.Array | np.ndarray):
        return ()
    dormant = np.asarray(lifecycle) == int(SeedLifecycleState.DORMANT)
    return tuple(kernel for kernel in structure.kernels if dormant[structure.row(kernel.layer), kernel.seed])


def check_free(model: MorphableModel, layer: str, seed: int) -> None:
    """A kernel may enter a seed that is DORMANT, or LOADING because it has been announced.

    Raises:
        IllegalTransitionError: The seed is in another state.
    """
    state = seed_state(model, seed_row(model.structure, layer, seed), seed)
    if state is not SeedLifecycleState.LOADING:
        check_transition(state, SeedLifecycleState.LOADING, place(layer, seed))


def check_called(structure: Structure, layer: str) -> None:
    """A layer whose weight the model reads without calling the layer has no output for a kernel to join.

    Raises:
        SeedError: So it is with this layer.
    """
    programs = structure.source.programs
    marks = {node.args[2] for program in programs for node in program.walk() if node.op == GRAFT}
    if programs and layer not in marks:
        raise SeedError(
            f"layer {layer!r} is never called as a module in the forwards captured so far, so a kernel there would "
            "have no effect; choose the module that is called instead"
        )


def seated(
    model: MorphableModel, kernel: Kernel, arrays: Mapping[str, jax.Array], state: SeedLifecycleState, kernel_id: int
) -> MorphableModel:
    """The model with a kernel in its seed, which begins its life in `state`.

    Raises:
        IllegalTransitionError: The seed is neither DORMANT nor LOADING.
    """
    check_free(model, kernel.layer, kernel.seed)
    grown = with_kernel(model, kernel, arrays)
    seeds = grown.seeds.set(
        model.structure.row(kernel.layer),
        kernel.seed,
        lifecycle=int(state),
        alpha=0.0,
        kernel_id=kernel_id,
        health=math.nan,
        age=0,
        last_update=0,
        error_count=0,
        origin=0.0,
        target=1.0,
    )
    return grown.replace(seeds=seeds)


def moved(seeds: SeedState, row: int, seed: int, to: SeedLifecycleState, target: float | None = None) -> SeedState:
    """The seeds with one in another state, whatever the table of moves says.

    Args:
        seeds: The seeds.
        row: The layer's row.
        seed: Which seed of the layer.
        to: The state.
        target: Alpha that a ramp leads to from now on; None: as before.
    """
    fields: dict[str, Any] = {"lifecycle": int(to), "last_update": seeds.age[row, seed]}
    fields["origin"] = seeds.alpha[row, seed]
    if target is not None:
        fields["target"] = target
    if to in (SeedLifecycleState.CULLED, SeedLifecycleState.DORMANT, SeedLifecycleState.ERROR_RECOVERY):
        fields["alpha"] = 0.0
    if to is SeedLifecycleState.DORMANT:  # its arrays, if there are any, are nobody's now
        fields["kernel_id"] = 0
    if to is SeedLifecycleState.ERROR_RECOVERY:
        fields["error_count"] = seeds.error_count[row, seed] + 1
    return seeds.set(row, seed, **fields)


def vacated(model: MorphableModel, layer: str, seed: int) -> MorphableModel:
    """The model without a seed's kernel; the seed is CULLED, if it was not yet.

    Raises:
        IllegalTransitionError: The seed's state cannot become CULLED.
    """
    row, culled = seed_row(model.structure, layer, seed), SeedLifecycleState.CULLED
    state, seeds = seed_state(model, row, seed), model.seeds
    if state is not culled:
        check_transition(state, culled, place(layer, seed))
        seeds = moved(seeds, row, seed, culled)
    return without_kernel(model, layer, seed).replace(seeds=seeds.set(row, seed, kernel_id=0))


def with_kernel(model: MorphableModel, kernel: Kernel, arrays: Mapping[str, jax.Array]) -> MorphableModel:
    """The model with a kernel and its parameters, instead of what its seed held; nothing else of its seed changes.

    In the place of a kernel of the same recipe only the arrays are new: the structure, and with it all that was
    compiled, stays.
    """
    structure, of_layer = model.structure, model.params["kernels"].get(kernel.layer, {})
    held, before = held_kernel(structure, kernel.layer, kernel.seed), of_layer.get(kernel.seed, {})
    if held is not None and _is_alike(held, before, kernel, arrays):
        arrays = {name: _placed_like(before[name], array) for name, array in arrays.items()}
    else:
        others = [other for other in structure.kernels if other is not held]
        kernels = sorted([*others, kernel], key=lambda k: (structure.row(k.layer), k.seed))
        structure = replace(structure, kernels=tuple(kernels))
        if structure.placement is not None:
            arrays = structure.placement.kernel(kernel.layer, kernel.seed, arrays)
    seeds = {**of_layer, kernel.seed: dict(arrays)}
    params = {**model.params, "kernels": {**model.params["kernels"], kernel.layer: seeds}}
    return model.replace(params=params, structure=structure)


def _is_alike(held: Kernel, before: Mapping[str, jax.Array], kernel: Kernel, arrays: Mapping[str, jax.Array]) -> bool:
    """Whether a kernel runs by the Programs of the one held: the same recipe, built for the same shapes."""
    sites = [(one.site.input, one.site.output) for one in (held, kernel)]
    types = [{name: (a.shape, a.dtype) for name, a in of.items()} for of in (before, arrays)]
    return held == kernel and sites[0] == sites[1] and types[0] == types[1]


def _placed_like(before: jax.Array, array: jax.Array) -> jax.Array:
    """The array where the other is: a compiled step is found by the devices of what it takes, too."""
    return jax.device_put(array, before.sharding) if before.committed else array


def without_kernel(model: MorphableModel, layer: str, seed: int) -> MorphableModel:
    """The model without a kernel and its parameters; nothing else of its seed changes."""
    kernels = tuple(k for k in model.structure.kernels if (k.layer, k.seed) != (layer, seed))
    held = {s: tree for s, tree in model.params["kernels"].get(layer, {}).items() if s != seed}
    others = {name: tree for name, tree in model.params["kernels"].items() if name != layer}
    params = {**model.params, "kernels": {**others, **({layer: held} if held else {})}}
    return model.replace(params=params, structure=replace(model.structure, kernels=kernels))
