"""A model as plain data and arrays, and back onto a model of the same layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import CorruptFileError, StateError
from esper.jax_backend.devices import beside, fetched, put
from esper.jax_backend.flax_kernels import FLAX, sprouted
from esper.jax_backend.interchange import wide
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.remat import Remat
from esper.jax_backend.seeds import SeedState
from esper.jax_backend.slots import place, with_kernel
from esper.jax_backend.source import Kernel, KernelSource, NativeKernel
from esper.persistence.plain import table
from esper.program import LayerSite

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SavedKernel:
    """A kernel's place and recipe; its arrays are elsewhere.

    Attributes:
        layer: Name of the layer.
        seed: Which of the layer's seeds holds it.
        blueprint: Name of the recipe.
        options: The recipe's options.
        site: The layer it was built for.
        placement: What it is fed.
        blend: How it joins the layer's output.
        description: Its parts and their settings, as text.
        native: Whether it is written in Flax, and has no Program.
        closed_over: Digest of the tensors that it holds beside its parameters; empty: it holds none.
    """

    layer: str
    seed: int
    blueprint: str
    options: tuple[tuple[str, Any], ...]
    site: LayerSite
    placement: str
    blend: str
    description: str
    native: bool
    closed_over: str


@dataclass(frozen=True)
class SavedModel:
    """All of a model that is neither an array nor a Program.

    Attributes:
        sites: The layers that can hold seeds.
        seeds_per_layer: Seeds of each.
        kernels: The kernels there are.
        trained: Names of the parameters that train.
        cache_bytes: Budget of the model's kernel cache.
        remat: The blocks whose insides a backward computes again.
        share_blocks: Whether equal blocks are traced once.
        wide: Whether JAX's 64-bit mode was on.
        description: The module's parts and their settings, as text.
        modes: The training flag of each part when it was wrapped.
    """

    sites: tuple[LayerSite, ...]
    seeds_per_layer: int
    kernels: tuple[SavedKernel, ...]
    trained: tuple[str, ...]
    cache_bytes: int
    remat: Remat | None
    share_blocks: bool
    wide: bool
    description: str
    modes: dict[str, bool]


CLASSES = table(SavedModel, SavedKernel, LayerSite, Remat)


def saved(model: MorphableModel) -> SavedModel:
    """What is to be kept of a model beside its arrays and Programs."""
    structure = model.structure
    return SavedModel(
        sites=tuple(structure.site(site.name) for site in structure.sites),
        seeds_per_layer=structure.seeds_per_layer,
        kernels=tuple(map(_saved, structure.kernels)),
        trained=tuple(sorted(model.params["host"])),
        cache_bytes=structure.cache.budget,
        remat=structure.remat,
        share_blocks=structure.share_blocks,
        wide=wide(),
        description=structure.source.description,
        modes=dict(structure.source.modes),
    )


def _saved(kernel: Kernel) -> SavedKernel:
    source = kernel.source
    described = (source.description, isinstance(source, NativeKernel), _closed_over(source))
    at = (kernel.layer, kernel.seed, kernel.blueprint, kernel.options, kernel.site, kernel.placement, kernel.blend)
    return SavedKernel(*at, *described)


def _closed_over(source: KernelSource) -> str:
    if isinstance(source, NativeKernel) or not source.constants:
        return ""
    hasher = hashlib.sha256()
    for name, tensor in sorted(source.constants.items()):
        array = np.ascontiguousarray(source.exportable(tensor, name))
        hasher.update(f"{name} {array.dtype}{array.shape}".encode() + array.tobytes())
    return hasher.hexdigest()


def host_of(model: MorphableModel) -> dict[str, np.ndarray]:
    """Parameters and buffers by torch name, fetched."""
    return fetched({**model.params["host"], **model.buffers})


def state_of(model: MorphableModel) -> dict[str, np.ndarray]:
    """The model's other arrays, fetched: kernels, seeds, and what its Programs close over."""
    constants = {**model.constants, **model.late_constants()}
    named: dict[str, Any] = {f"constants/{name}": array for name, array in constants.items()}
    named |= {f"seeds/{own.name}": getattr(model.seeds, own.name) for own in fields(model.seeds)}
    for layer, seed, name, array in _kernel_arrays(model):
        named[_kernel_name(layer, seed, name)] = array
    return fetched(named)


def restored(model: MorphableModel, held: SavedModel, host: Arrays, state: Arrays) -> MorphableModel:
    """A model of the same layers with what was saved: values, seeds, and kernels that its source builds anew.

    Arrays go to where those of `model` lie.

    Raises:
        StateError: The model has other layers, parameters or buffers, or JAX's 64-bit mode is another; all is listed.
        CorruptFileError: What was saved does not fit together.
        UnknownBlueprintError: The model's source does not know a kernel's blueprint.
    """
    _check(model, held, host)
    structure = replace(model.structure, kernels=(), remat=held.remat, share_blocks=held.share_blocks)
    params = {name: _lying_as(array, host[name]) for name, array in model.params["host"].items()}
    grown = model.replace(
        params={"host": params, "kernels": {}},
        buffers={name: _lying_as(array, host[name]) for name, array in model.buffers.items()},
        constants={name: _lying_as(array, state[f"constants/{name}"]) for name, array in model.constants.items()},
        structure=structure,
    )
    for kernel in held.kernels:
        grown = _with(grown, kernel, state)
    return grown.replace(seeds=beside(_seeds(model, held, state), params))


def check_wide(held: SavedModel) -> None:
    """Raises StateError unless JAX's 64-bit mode is as it was: dtypes follow it, and Programs hold for dtypes."""
    if held.wide != wide():
        was, now = ("on", "off") if held.wide else ("off", "on")
        raise StateError(
            f"it was saved with JAX's 64-bit mode {was}, and it is {now} here: "
            f'jax.config.update("jax_enable_x64", {held.wide}) before anything else'
        )


def _check(model: MorphableModel, held: SavedModel, host: Arrays) -> None:
    check_wide(held)
    problems = [*_other_layers(model, held), *_other_arrays(model, held, host)]
    if problems:
        raise StateError("the model is not the one that was saved:\n  " + "\n  ".join(problems[:20]))


def _other_layers(model: MorphableModel, held: SavedModel) -> Iterator[str]:
    structure = model.structure
    if structure.seeds_per_layer != held.seeds_per_layer:
        yield f"it has {structure.seeds_per_layer} seeds a layer, and {held.seeds_per_layer} were saved"
    ours, theirs = ({site.name: site for site in sites} for sites in (structure.sites, held.sites))
    if list(ours) != list(theirs):
        yield f"its layers with seeds are {list(ours)}, and {list(theirs)} were saved"
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            yield f"layer {name!r} is {ours[name]}, and {theirs[name]} was saved"


def _other_arrays(model: MorphableModel, held: SavedModel, host: Arrays) -> Iterator[str]:
    ours = {**model.params["host"], **model.buffers}
    for name in sorted(ours.keys() | host.keys()):
        if name not in host:
            yield f"{name} was not saved"
        elif name not in ours:
            yield f"{name} was saved, and it has none"
        elif (ours[name].shape, ours[name].dtype) != (host[name].shape, host[name].dtype):
            kinds = (f"{array.dtype}{list(array.shape)}" for array in (ours[name], host[name]))
            yield "{}: it has {}, and {} was saved".format(name, *kinds)
    for name in sorted(set(held.trained) ^ model.params["host"].keys()):
        yield f"{name} is trained in one of them and frozen in the other"


def _with(model: MorphableModel, kernel: SavedKernel, state: Arrays) -> MorphableModel:
    """The model with a kernel that its source builds anew, and the saved values."""
    structure, where = model.structure, place(kernel.layer, kernel.seed)
    if kernel.layer not in [site.name for site in structure.sites] or kernel.seed not in range(
        structure.seeds_per_layer
    ):
        raise CorruptFileError(f"{where}: there is no such seed")
    if kernel.native and kernel.blueprint not in FLAX:
        raise StateError(
            f"{where}: its kernel is written in Flax, and no blueprint {kernel.blueprint!r} is registered here; "
            "register it by `esper.interop.flax_blueprint` before the model is loaded"
        )
    options = dict(kernel.options)
    sprout = sprouted(structure.source, kernel.blueprint, kernel.site, options, None, kernel.blend)
    if (sprout.source.description, sprout.placement) != (kernel.description, kernel.placement):
        raise StateError(
            f"{where}: blueprint {kernel.blueprint!r} built {kernel.description} when it was saved, and builds "
            f"{sprout.source.description} here"
        )
    if _closed_over(sprout.source) != kernel.closed_over:
        raise StateError(
            f"{where}: blueprint {kernel.blueprint!r} holds tensors that are no parameters, with other values than "
            "were saved: let them be parameters, or the same whenever it is built"
        )
    arrays = {}
    for name, drawn in sprout.params.items():
        array, wanted = state[_kernel_name(kernel.layer, kernel.seed, name)], sprout.source.exportable(drawn, name)
        if (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            raise CorruptFileError(f"{where}: {name} is {array.dtype}{list(array.shape)}, which the kernel has not")
        arrays[name] = jnp.array(array)
    at = (kernel.layer, kernel.seed, kernel.blueprint, sprout.options, kernel.site, sprout.placement, kernel.blend)
    return with_kernel(model, Kernel(*at, sprout.source), arrays)


def _seeds(model: MorphableModel, held: SavedModel, state: Arrays) -> SeedState:
    found = {}
    for own in fields(model.seeds):
        before, array = getattr(model.seeds, own.name), state[f"seeds/{own.name}"]
        if (before.shape, before.dtype) != (array.shape, array.dtype):
            raise CorruptFileError(f"seeds/{own.name} is {array.dtype}{list(array.shape)}, and the seeds are not")
        found[own.name] = jnp.array(array)
    return SeedState(**found)


def _lying_as(old: jax.Array, array: np.ndarray) -> jax.Array:
    """The array where the old one lies."""
    if isinstance(old.sharding, jax.sharding.NamedSharding):
        return put(array, old.sharding)
    new = jnp.array(array)
    return jax.device_put(new, old.sharding) if old.committed else new


def _kernel_arrays(model: MorphableModel) -> Iterator[tuple[str, int, str, jax.Array]]:
    for layer, seeds in model.params["kernels"].items():
        for seed, held in seeds.items():
            yield from ((layer, seed, name, array) for name, array in held.items())


def _kernel_name(layer: str, seed: int, name: str) -> str:
    return f"kernels/{layer}/{seed}/{name}"
