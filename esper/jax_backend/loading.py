"""Kernels that arrive trained, and kernels taken out of their seeds: between a model and its cache of artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import jax.numpy as jnp

from esper.blending import BLENDS
from esper.errors import ArgumentError, ArtifactError, SeedError, UnknownBlueprintError
from esper.jax_backend.artifact import KernelArtifact, artifact_of
from esper.jax_backend.flax_kernels import sprouted
from esper.jax_backend.slots import check_called, check_free, place, seated, vacated
from esper.jax_backend.source import Kernel, ModuleSource, Sprout, Structure
from esper.lifecycle import SeedLifecycleState
from esper.program import LayerSite

if TYPE_CHECKING:  # the model's methods are made of these functions
    from esper.jax_backend.model import MorphableModel


def loaded(model: MorphableModel, layer: str, seed: int, artifact: KernelArtifact | str) -> MorphableModel:
    """The model with a trained kernel in a dormant seed, which starts GRAFTING at alpha 0.

    The kernel's arrays in the model are copies: a step that donates the model's arrays leaves the cache whole.

    Raises:
        UnknownLayerError: No such layer.
        UnknownBlueprintError: The artifact's recipe is not known, or not for this kind of layer.
        IllegalTransitionError: The seed is neither DORMANT nor LOADING.
        ArtifactError: The artifact is in neither cache nor library, or does not fit the layer; the message says why.
        LibraryError: The library that it would come from cannot be read.
        SeedError: There is no such seed, the model never calls the layer, or the recipe does not fit it.
    """
    check_free(model, layer, seed)
    check_called(model.structure, layer)
    artifact = found(model.structure, artifact, place(layer, seed))
    kernel = _built(model.structure, layer, seed, artifact)
    model.structure.cache.put(artifact)
    arrays = {name: jnp.copy(array) for name, array in artifact.params.items()}
    return seated(model, kernel, arrays, SeedLifecycleState.GRAFTING, artifact.kernel_id)


def unloaded(
    model: MorphableModel, layer: str, seed: int, *, keep: bool = False
) -> tuple[MorphableModel, KernelArtifact]:
    """The model without a seed's kernel, the seed CULLED; and the kernel, which the cache keeps if it has room.

    Args:
        model: The model.
        layer: Name of a KasminaLayer.
        seed: Which of its seeds.
        keep: Whether the cache must have room.

    Raises:
        UnknownLayerError: No such layer.
        IllegalTransitionError: The seed's state cannot become CULLED.
        SeedError: There is no such seed, or it holds no kernel.
        ArtifactError: The cache must keep the kernel, and its budget is too small.
    """
    emptied, artifact = vacated(model, layer, seed), artifact_of(model, layer=layer, seed=seed)
    cache = model.structure.cache
    if keep and not cache.has_room_for(artifact):
        raise ArtifactError(
            f"{place(layer, seed)}: its kernel takes {artifact.nbytes} bytes, and the model's cache keeps at most "
            f"{cache.budget}; wrap with a larger cache_size_mb, or use esper.unload_kernel, which returns the kernel"
        )
    cache.put(artifact)
    return emptied, artifact


def prefetched(model: MorphableModel, digest: str) -> Future[KernelArtifact]:
    """The artifact of a digest, on its way from the model's library into its cache.

    Raises:
        ArtifactError: It is not in the cache, and the model has no library.
    """
    cache, library = model.structure.cache, model.structure.library
    known = cache.get(digest)
    if known is not None:
        here: Future[KernelArtifact] = Future()
        here.set_result(known)
        return here
    if library is None:
        raise ArtifactError(
            f"{digest} is not in the model's cache, and it has no library: wrap with library=, see esper.library"
        )
    coming = library.fetch(digest)
    coming.add_done_callback(lambda done: None if done.exception() else cache.put(done.result()))
    return coming


def found(structure: Structure, artifact: KernelArtifact | str, where: str) -> KernelArtifact:
    """The artifact from the cache; if it is not there, itself, or what the library has.

    Args:
        structure: Of the model whose cache and library are asked.
        artifact: It, or its digest.
        where: The seed that it is for, for messages.

    Raises:
        ArtifactError: It is nowhere, its arrays were deleted, or it is not what was put into the library.
        LibraryError: The library cannot be read.
    """
    cache = structure.cache
    if not isinstance(artifact, str | KernelArtifact):
        raise ArtifactError(f"{where}: a {type(artifact).__name__} is neither a KernelArtifact nor the digest of one")
    known = cache.get(artifact if isinstance(artifact, str) else artifact.digest)
    if known is not None:
        return known
    if isinstance(artifact, str) and structure.library is not None:
        try:
            return structure.library.get(artifact)
        except (ArtifactError, ArgumentError) as error:
            raise ArtifactError(f"{where}: {error}") from error
    if isinstance(artifact, str):
        held = ", ".join(cache.digests()) or "nothing"
        raise ArtifactError(
            f"{where}: {artifact} is not in the model's cache, which holds {held}; it was never put there, has left to "
            "make room, or its arrays were donated. Give the KernelArtifact itself, or wrap with library="
        )
    if not artifact.alive:
        raise ArtifactError(f"{where}: the arrays of {artifact.digest} were deleted by a step they were donated to")
    return artifact


def _built(structure: Structure, layer: str, seed: int, artifact: KernelArtifact) -> Kernel:
    """The kernel that the artifact's parameters are for, built anew beside this layer."""
    site, where = structure.site(layer), place(layer, seed)
    _refuse(where, artifact, list(_other_layer(site, artifact)))
    if artifact.blend not in BLENDS:
        _refuse(where, artifact, [f"there is no blend {artifact.blend!r}, there are: {', '.join(BLENDS)}"])
    sprout = _sprout(structure.source, site, artifact)
    _refuse(where, artifact, [*_other_parameters(sprout, artifact), *_other_recipe(sprout, artifact)])
    return Kernel(
        layer, seed, artifact.blueprint, sprout.options, site, sprout.placement, artifact.blend, sprout.source
    )


def _sprout(source: ModuleSource, site: LayerSite, artifact: KernelArtifact) -> Sprout:
    """The recipe's kernel here; by the recipe that the artifact carries where it is not known."""
    recipe = (artifact.blueprint, site, dict(artifact.options), None, artifact.blend)
    try:
        return sprouted(source, *recipe)
    except (UnknownBlueprintError, SeedError):
        if artifact.carried is None:
            raise
    source.learn(artifact.carried)
    return sprouted(source, *recipe)


def _other_layer(site: LayerSite, artifact: KernelArtifact) -> Iterator[str]:
    """What keeps the layer from being one that the kernel was built for."""
    if site.kind != artifact.kind:
        yield f"it was built for a {artifact.kind}, and the layer is a {site.kind}"
        return
    there, here = dict(artifact.attributes), dict(site.attributes)
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            yield f"it was built for {name} {there.get(name)}, and the layer has {here.get(name)}"
    if site.dtype != artifact.dtype:
        yield f"it was built for {artifact.dtype}, and the layer has {site.dtype}"


def _other_parameters(sprout: Sprout, artifact: KernelArtifact) -> Iterator[str]:
    """Where the artifact's parameters are not those that the recipe draws here."""
    for name in sorted(sprout.params.keys() | artifact.params.keys()):
        if name not in artifact.params:
            yield f"the recipe has a parameter {name} here, and it has none"
        elif name not in sprout.params:
            yield f"it has a parameter {name}, and the recipe has none here"
        else:
            drawn, given = sprout.source.exportable(sprout.params[name], name), artifact.params[name]
            if (drawn.shape, drawn.dtype) != (given.shape, given.dtype):
                yield (
                    f"its {name} is {given.dtype}{list(given.shape)}, and the recipe's here is "
                    f"{drawn.dtype}{list(drawn.shape)}"
                )


def _other_recipe(sprout: Sprout, artifact: KernelArtifact) -> Iterator[str]:
    """Where the recipe is no longer, or not here, what the artifact was made by."""
    if sprout.placement != artifact.placement:
        yield f"it was {artifact.placement}, and the recipe is {sprout.placement}"
    if sprout.source.description != artifact.module:
        yield f"the recipe built {artifact.module} then, and {sprout.source.description} here"


def _refuse(where: str, artifact: KernelArtifact, reasons: list[str]) -> None:
    if reasons:
        raise ArtifactError(
            f"{where}: the kernel {artifact.blueprint!r} ({artifact.digest[:19]}...) does not fit: "
            f"{'; '.join(reasons)}. Load it beside a layer like the one it was taken from, or germinate one here"
        )
