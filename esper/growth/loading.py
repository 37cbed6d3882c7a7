"""Verbs for kernels that were trained before: into a seed, and out of it again, with the optimiser state following."""

from __future__ import annotations

from typing import TypeVar

from esper.growth.optimizer import Optimizer, migrate, restarted
from esper.jax_backend.artifact import KernelArtifact
from esper.jax_backend.loading import loaded, unloaded
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState

State = TypeVar("State")


def load_kernel(
    model: MorphableModel,
    opt_state: State,
    *,
    layer: str,
    seed: int = 0,
    artifact: KernelArtifact | str,
    to: SeedLifecycleState = SeedLifecycleState.GRAFTING,
    tx: Optimizer | None = None,
) -> tuple[MorphableModel, State]:
    """Puts a trained kernel into a dormant seed, which starts at alpha 0; outputs do not change yet.

    Args:
        model: The model.
        opt_state: An optax state for `model.params`, or None.
        layer: Name of a KasminaLayer like the one that the kernel was trained beside.
        seed: Which of its seeds.
        artifact: The kernel, which the model's cache keeps if it has room; or the digest of one that is there, or in
            the library that the model was wrapped with.
        to: GRAFTING: it is blended in as it is. TRAINING: it trains in isolation first, as a new kernel does, so that
            it gets used to this host, and this host not to a kernel that it would be better without.
        tx: As in `germinate`.

    Returns:
        The model with the kernel, and the optimiser state with its entries, which start as those of a new kernel.

    Raises:
        UnknownLayerError: No such layer.
        UnknownBlueprintError: The artifact's recipe is not known, or not for this kind of layer.
        IllegalTransitionError: The seed is neither DORMANT nor LOADING, or is to become something else.
        ArtifactError: The artifact is in neither cache nor library, or does not fit the layer; the message says why.
        LibraryError: The library cannot be read.
        SeedError: There is no such seed, the model never calls the layer, or the recipe does not fit it.
        OptimizerStateError: As `germinate`.

    Example:
        >>> import esper, jax, torch
        >>> model = esper.wrap(torch.nn.Linear(3, 2))
        >>> model, _ = esper.germinate(model, None, layer="", blueprint="low_rank", key=jax.random.key(0))
        >>> model, _, artifact = esper.unload_kernel(model, None, layer="")
        >>> other, _ = esper.load_kernel(esper.wrap(torch.nn.Linear(3, 2)), None, layer="", artifact=artifact)
        >>> artifact.digest in other.structure.cache
        True
    """
    grown = loaded(model, layer, seed, artifact, to)
    return grown, restarted(opt_state, model.params, grown.params, (layer, seed), tx=tx)


def unload_kernel(
    model: MorphableModel, opt_state: State, *, layer: str, seed: int = 0, tx: Optimizer | None = None
) -> tuple[MorphableModel, State, KernelArtifact]:
    """Takes a kernel out of its seed: as `cull`, but the kernel is kept.

    Args:
        model: The model.
        opt_state: An optax state for `model.params`, or None.
        layer: Name of a KasminaLayer.
        seed: Which of its seeds.
        tx: As in `germinate`.

    Returns:
        The model without the kernel, the seed CULLED; the optimiser state without its entries; and the kernel, which
        the model's cache keeps too if it has room.

    Raises:
        UnknownLayerError: No such layer.
        IllegalTransitionError: The seed's state cannot become CULLED.
        SeedError: There is no such seed, or it holds no kernel.
        OptimizerStateError: As `cull`.
    """
    emptied, artifact = unloaded(model, layer, seed)
    return emptied, migrate(opt_state, model.params, emptied.params, tx=tx), artifact
