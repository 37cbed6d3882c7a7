"""The growth verbs: pure functions from a model to a model.

Those that change which kernels there are (germinate, cull) also migrate the optimiser state, and mean
another compiled program; the others change data only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from zlib import crc32

import jax
import jax.numpy as jnp

from esper.blending import BLENDS
from esper.errors import SeedError
from esper.growth.birth import DoNotGerminate, Init, Newborn, at_birth
from esper.growth.optimizer import Optimizer, migrate, restarted
from esper.jax_backend.devices import whole
from esper.jax_backend.flax_kernels import sprouted
from esper.jax_backend.interchange import adopt, is_traced
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.slots import (
    check_called,
    check_free,
    held_kernel,
    moved,
    place,
    seated,
    seed_row,
    seed_state,
    vacated,
)
from esper.jax_backend.source import Kernel
from esper.lifecycle import SeedLifecycleState, check_transition

State = TypeVar("State")


def germinate(
    model: MorphableModel,
    opt_state: State,
    *,
    layer: str,
    seed: int = 0,
    blueprint: str,
    key: jax.Array,
    options: Mapping[str, Any] | None = None,
    blend: str = "add",
    init: Init | None = None,
    tx: Optimizer | None = None,
) -> tuple[MorphableModel, State]:
    """Puts a new kernel into a dormant seed, which starts TRAINING; the model's outputs do not change.

    Args:
        model: The model.
        opt_state: An optax state for `model.params`, or None.
        layer: Name of a KasminaLayer.
        seed: Which of its seeds.
        blueprint: Name of a recipe for this kind of layer.
        key: What the kernel's parameters are drawn from.
        options: The recipe's options, such as {"rank": 16}.
        blend: How the kernel will join the layer's output: "add", "lerp", "multiply" or "gate" (`esper.blending`).
        init: Changes the drawn parameters before they enter (see `esper.growth.initialisers`); None: they stay as
            the recipe draws them.
        tx: What made a plain optax state, so that any can be migrated; needless for `per_kernel`.

    Returns:
        The model with the kernel, and the optimiser state with its entries; both as they were if `init` finds that
        no kernel is worth having (`DoNotGerminate`).

    Raises:
        UnknownLayerError: No such layer.
        UnknownBlueprintError: No such blueprint for this kind of layer.
        IllegalTransitionError: The seed is neither DORMANT nor LOADING.
        SeedError: The model never calls the layer, the recipe does not fit it or has no such option, there is no such
            blend, or `init` returns other names, shapes or dtypes than the recipe's.
        OptimizerStateError: What the kernel's optimiser state starts with cannot be known.
    """
    newborn = conceive(
        model, layer=layer, seed=seed, blueprint=blueprint, key=key, options=options, blend=blend, init=init
    )
    return (model, opt_state) if isinstance(newborn, DoNotGerminate) else enter(model, opt_state, newborn, tx=tx)


def conceive(
    model: MorphableModel,
    *,
    layer: str,
    seed: int = 0,
    blueprint: str,
    key: jax.Array,
    options: Mapping[str, Any] | None = None,
    blend: str = "add",
    init: Init | None = None,
) -> Newborn | DoNotGerminate:
    """The first half of `germinate`: builds the kernel, and leaves the model as it is.

    What the arrays of the model decide (`copy`, initialisers) is decided now. `enter` may come later, at a model that
    has trained on in the meantime. Arguments and errors are those of `germinate`.
    """
    check_free(model, layer, seed)
    structure = model.structure
    check_called(structure, layer)
    if blend not in BLENDS:
        raise SeedError(f"no blend {blend!r}; there are: {', '.join(BLENDS)}")
    held = held_kernel(structure, layer, seed)
    # Built for the shapes that the one in reserve was built for, it runs by the same Programs.
    is_held = held is not None and (held.blueprint, held.blend) == (blueprint, blend)
    site = held.site if held is not None and is_held else structure.site(layer)
    entropy = int(jax.random.bits(key, dtype=jnp.uint32))
    sprout = sprouted(structure.source, blueprint, site, options or {}, entropy, blend)
    kernel = Kernel(layer, seed, blueprint, sprout.options, site, sprout.placement, blend, sprout.source)
    arrays = {name: adopt(sprout.source, tensor, f"{layer}: {name}") for name, tensor in sprout.params.items()}
    arrays |= {own: jnp.copy(whole(_host_array(model, name))) for own, name in sprout.copied.items()}
    outcome = at_birth(init, arrays, kernel, key)
    if isinstance(outcome, DoNotGerminate):
        return outcome
    kernel_id = crc32(f"{blueprint} {sprout.options} {entropy}".encode())
    return Newborn(kernel, outcome.params, kernel_id, outcome.report)


def enter(
    model: MorphableModel, opt_state: State, newborn: Newborn, *, tx: Optimizer | None = None
) -> tuple[MorphableModel, State]:
    """The second half of `germinate`: puts a kernel that was conceived into its seed, which starts TRAINING.

    Where a kernel of that recipe is in reserve this is data only: nothing is compiled again.

    Raises:
        IllegalTransitionError: The seed is neither DORMANT nor LOADING.
        OptimizerStateError: As `germinate`.
    """
    grown = seated(model, newborn.kernel, newborn.params, SeedLifecycleState.TRAINING, newborn.kernel_id)
    at = newborn.kernel.layer, newborn.kernel.seed
    return grown, restarted(opt_state, model.params, grown.params, at, tx=tx)


def transition(
    model: MorphableModel, *, layer: str, seed: int = 0, to: SeedLifecycleState, target: float | None = None
) -> MorphableModel:
    """Moves a seed to another state; data only, nothing is compiled again.

    A kernel that is still in its seed when that becomes DORMANT is in reserve from then on (see `reserve`).

    Args:
        model: The model.
        layer: Name of a KasminaLayer.
        seed: Which of its seeds.
        to: The state.
        target: With GRAFTING, the alpha that its ramp leads to; None: 0 for a seed that is ACTIVE, 1 for others.

    Raises:
        IllegalTransitionError: The table does not allow the move.
        SeedError: The new state needs a kernel and the seed has none, or the target is not in [0, 1].
    """
    if target is not None and (to is not SeedLifecycleState.GRAFTING or not 0.0 <= target <= 1.0):
        raise SeedError(f"{place(layer, seed)}: a target is for GRAFTING, in [0, 1]; it is {target} for {to!r}")
    row, to = seed_row(model.structure, layer, seed), SeedLifecycleState(to)
    was = seed_state(model, row, seed)
    check_transition(was, to, place(layer, seed))
    needs_kernel = to not in (SeedLifecycleState.DORMANT, SeedLifecycleState.LOADING, SeedLifecycleState.CULLED)
    if needs_kernel and not held_kernel(model.structure, layer, seed):
        raise SeedError(f"{place(layer, seed)} holds no kernel, so it cannot become {to.name}: germinate it first")
    if to is SeedLifecycleState.GRAFTING and target is None:
        target = float(was is not SeedLifecycleState.ACTIVE)
    return model.replace(seeds=moved(model.seeds, row, seed, to, target))


def set_alpha(model: MorphableModel, *, layer: str, seed: int = 0, alpha: float | jax.Array) -> MorphableModel:
    """Sets the weight of a seed's kernel in the layer's output; data only, also inside `jax.jit`.

    Raises:
        SeedError: `alpha` is not in [0, 1], or the seed is FOSSILIZED.
    """
    row = seed_row(model.structure, layer, seed)
    if not is_traced(alpha) and not 0.0 <= float(alpha) <= 1.0:
        raise SeedError(f"{place(layer, seed)}: alpha is in [0, 1], not {float(alpha)}")
    concrete = not is_traced(model.seeds.lifecycle)
    if concrete and seed_state(model, row, seed) is SeedLifecycleState.FOSSILIZED:
        raise SeedError(f"{place(layer, seed)} is FOSSILIZED: its alpha is permanent")
    return model.replace(seeds=model.seeds.set(row, seed, alpha=alpha))


def cull(
    model: MorphableModel, opt_state: State, *, layer: str, seed: int = 0, tx: Optimizer | None = None
) -> tuple[MorphableModel, State]:
    """Removes a seed's kernel and every trace of it in the optimiser state; the host's outputs are as before it.

    A seed that is CULLED already (by `transition`, which leaves the arrays in place) is emptied. `tx` is as in
    `germinate`.

    Raises:
        IllegalTransitionError: The seed's state cannot become CULLED.
        OptimizerStateError: The state, without `tx`, does not show what belongs to the kernel.
    """
    emptied = vacated(model, layer, seed)
    return emptied, migrate(opt_state, model.params, emptied.params, tx=tx)


def _host_array(model: MorphableModel, name: str) -> jax.Array:
    host = model.params["host"]
    return host[name] if name in host else model.buffers[name]
