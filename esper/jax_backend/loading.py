"""Kernels that arrive trained, and kernels taken out of their seeds: between a model and its cache of artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from esper.blending import BLENDS
from esper.errors import ArgumentError, ArtifactError, IllegalTransitionError, SeedError, UnknownBlueprintError
from esper.jax_backend.artifact import KernelArtifact, artifact_of
from esper.jax_backend.flax_kernels import FLAX, sprouted
from esper.jax_backend.slots import check_called, check_free, place, seated, vacated
from esper.jax_backend.source import Kernel, ModuleSource, Sprout, Structure
from esper.lifecycle import SeedLifecycleState
from esper.program import LayerSite, Recipe

if TYPE_CHECKING:  # the model's methods are made of these functions
    from esper.jax_backend.model import MorphableModel

_ARRIVES = (SeedLifecycleState.GRAFTING, SeedLifecycleState.TRAINING)


def loaded(
    model: MorphableModel,
    layer: str,
    seed: int,
    artifact: KernelArtifact | str,
    to: SeedLifecycleState = SeedLifecycleState.GRAFTING,
) -> MorphableModel:
    """The model with a trained kernel in a dormant seed, which starts at alpha 0: GRAFTING, or TRAINING.

    The kernel's arrays in the model are copies: a step that donates the model's arrays leaves the cache whole.

    Raises:
        UnknownLayerError: No such layer.
        UnknownBlueprintError: The artifact's recipe is not known, or not for this kind of layer.
        IllegalTransitionError: The seed is neither DORMANT nor LOADING.
        ArtifactError: The artifact is in neither cache nor library, or does not fit the layer; the message says why.
        LibraryError: The library that it would come from cannot be read.
        SeedError: There is no such seed, the model never calls the layer, or the recipe does not fit it.
    """
    if to not in _ARRIVES:
        raise IllegalTransitionError(SeedLifecycleState.LOADING.name, to.name, [state.name for state in _ARRIVES])
    check_free(model, layer, seed)
    check_called(model.structure, layer)
    artifact = found(model.structure, artifact, place(layer, seed))
    kernel = _built(model.structure, layer, seed, artifact)
    model.structure.cache.put(artifact)
    arrays = {name: jnp.copy(array) for name, array in artifact.params.items()}
    return seated(model, kernel, arrays, to, artifact.kernel_id)


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


def check_library(library: object) -> None:
    """Refuses what kernels cannot be loaded from, such as the path of a library.

    Raises:
        ArgumentError: It is no library.
    """
    if library is None:
        return
    if isinstance(library, type) or not all(callable(getattr(library, name, None)) for name in ("get", "fetch")):
        raise ArgumentError(
            f"library is one that is open, not {library!r:.80}: give esper.library.open_library(...) of its folder or "
            "configuration"
        )


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

    def kept(done: Future[KernelArtifact]) -> None:
        if not (done.cancelled() or done.exception()):
            cache.put(done.result())

    coming.add_done_callback(kept)
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
    # Without Programs it would do less than the one that is given.
    if known is not None and (known.carried is not None or isinstance(artifact, str) or artifact.carried is None):
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
    sprout, new = _sprout(structure.source, site, artifact, where)
    _refuse(where, artifact, [*_other_parameters(sprout, artifact), *_other_recipe(sprout, artifact)])
    if new is not None:  # only now: kernels that come later are built by what the source has learned
        structure.source.learn(new)
    return Kernel(
        layer, seed, artifact.blueprint, sprout.options, site, sprout.placement, artifact.blend, sprout.source
    )


def _sprout(
    source: ModuleSource, site: LayerSite, artifact: KernelArtifact, where: str
) -> tuple[Sprout, Recipe | None]:
    """The recipe's kernel here; by the recipe that the artifact carries where it is not known, which is given too."""
    recipe = (artifact.blueprint, site, dict(artifact.options), None, artifact.blend)
    carried = artifact.carried if source.learns else None
    try:
        if artifact.blueprint not in FLAX:
            _refuse(where, artifact, list(_other_size(source, site, artifact)))
        found = sprouted(source, *recipe)
    except ArtifactError:
        raise
    except UnknownBlueprintError:
        if artifact.carried is None:
            raise
        return source.taught(artifact.carried).sprout(*recipe), artifact.carried
    except SeedError:
        if carried is None:
            raise
        return source.taught(carried).sprout(*recipe), carried
    known = [held for held in source.recipes if carried is not None and _stands_for(held, carried, site)]
    if any(not _computes_alike(held, artifact.carried) for held in known):
        _refuse(where, artifact, ["the model builds such kernels by other Programs than those it carries"])
    return found, None


def _stands_for(held: Recipe, carried: Recipe, site: LayerSite) -> bool:
    """Whether a recipe is the one that would be used in the place of that which came with a kernel."""
    names = (held.blueprint, held.gated) == (carried.blueprint, carried.gated)
    return names and held.serves(site) and held.offers(dict(carried.options))


def _computes_alike(one: Recipe, other: Recipe | None) -> bool:
    """Whether two recipes run and draw kernels by the same Programs, whichever calls these were captured by."""
    if other is None:
        return True
    same = one.birth == other.birth and one.names == other.names and dict(one.copied) == dict(other.copied)
    programs, others = ([program for _, program in recipe.captures] for recipe in (one, other))
    same = same and all(own in others for own in programs) and all(own in programs for own in others)
    return same and one.constants.keys() == other.constants.keys() and all(map(_same, _pairs(one, other)))


def _pairs(one: Recipe, other: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name, value in one.constants.items():
        yield np.asarray(value), np.asarray(other.constants[name])


def _same(pair: tuple[np.ndarray, np.ndarray]) -> bool:
    one, other = pair
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def _other_size(source: ModuleSource, site: LayerSite, artifact: KernelArtifact) -> Iterator[str]:
    """What keeps the recipe from being built at all: an option may ask for more than there is memory."""
    sizes = source.sizes(artifact.blueprint, site, dict(artifact.options), artifact.blend)
    if sizes is None:
        return
    for name in sorted(sizes.keys() & artifact.params.keys()):
        given, (dtype, shape) = artifact.params[name], sizes[name]
        if shape != tuple(given.shape):
            yield f"its {name} is {given.dtype}{list(given.shape)}, and the recipe's here is {dtype}{list(shape)}"


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
