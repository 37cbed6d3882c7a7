"""Kernels that are written in Flax: their catalogue, how one is built, and how it runs.

A kernel's parameters are {dotted name: array} here as everywhere; the module gets them back under its own paths. Flax
has features last, so beside layers that have them on axis 1 a kernel reads and gives them last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import FlaxError

from esper.errors import MissingKeyError, SeedError
from esper.jax_backend.flax_modules import LinenModule, NnxModule, described
from esper.jax_backend.layout import ChannelsLast, Value, in_torch_order
from esper.jax_backend.source import ModuleSource, NativeKernel, Sprout
from esper.program import LayerSite, Twin
from esper.program.catalogue import Catalogue

FLAX = Catalogue("Flax")
Arrays = Mapping[str, jax.Array]

_OF_KERNEL = "kernel."
_GATE = ("gate.weight", "gate.bias")


@dataclass(frozen=True, eq=False)
class FlaxKernel(NativeKernel):
    """A Flax module as a kernel.

    Attributes:
        blueprint: Name of its recipe.
        site: The layer that it was built for.
        module: What runs.
        gated: Whether it stands behind a gate of its own.
        twin: What makes a module of torch's of it; None: torch cannot run it.
        description: The module's parts and their settings.
    """

    blueprint: str
    site: LayerSite
    module: LinenModule | NnxModule = field(repr=False)
    gated: bool
    twin: Twin | None = field(repr=False)
    description: str = field(repr=False)

    def exportable(self, tensor: Any, place: str) -> np.ndarray:
        """The values of one of its initial parameters."""
        return np.asarray(tensor)

    def run(self, params: Arrays, fed: Value, *, train: bool, key: jax.Array | None) -> jax.Array:
        """What the kernel gives, in torch's order of dimensions."""
        read = _features_last(fed, self.site.positions)
        own = params
        if self.gated:
            own = {name.removeprefix(_OF_KERNEL): array for name, array in params.items() if name not in _GATE}
        with _Place(self.blueprint, self.site):
            made = self.module.run(own, read, train, key)
        wanted = read.ndim + jnp.issubdtype(read.dtype, jnp.integer)  # an embedding's indices have no features
        if not isinstance(made, jax.Array) or made.ndim != wanted:
            shape = f"shape {made.shape}" if isinstance(made, jax.Array) else f"a {type(made).__name__}"
            raise SeedError(
                f"blueprint {self.blueprint!r} at layer {self.site.name!r} returns {shape} for {read.shape}, features "
                f"last; a kernel returns one array, here of {wanted} dimensions"
            )
        if self.gated:
            made = self._gate(params, read, made)
        return jnp.moveaxis(made, -1, -1 - self.site.positions)

    def _gate(self, params: Arrays, read: jax.Array, made: jax.Array) -> jax.Array:
        """The kernel's output, weighed at every position by what the features there say, as in torch's blueprints."""
        weight, bias = (params[name] for name in _GATE)
        gate = jax.nn.sigmoid(read @ weight.T + bias)
        axes = tuple(range(-1 - self.site.positions, -1))
        if made.shape[:-1] != read.shape[:-1] and axes:
            gate = gate.mean(axes, keepdims=True)
        return gate * made


@dataclass(frozen=True)
class FlaxSprout:
    """A kernel that has just been built; see `Sprout`."""

    source: FlaxKernel
    params: Arrays
    placement: str
    options: tuple[tuple[str, Any], ...]
    copied: Mapping[str, str] = field(default_factory=dict)


def sprouted(
    source: ModuleSource,
    blueprint: str,
    site: LayerSite,
    options: Mapping[str, Any],
    entropy: int | None,
    blend: str = "add",
) -> Sprout:
    """A new kernel for a layer, by a recipe in Flax or by one that the model's source knows.

    Raises:
        UnknownBlueprintError: No such blueprint for this kind of layer.
        SeedError: The blueprint does not fit the layer.
    """
    if blueprint in FLAX:
        return _sprout(blueprint, site, options, entropy, blend)
    return source.sprout(blueprint, site, options, entropy, blend)


def _sprout(blueprint: str, site: LayerSite, options: Mapping[str, Any], entropy: int | None, blend: str) -> FlaxSprout:
    entry = FLAX.find(blueprint, site, options)
    shape, dtype = site.fed(entry.placement)
    example = jnp.moveaxis(jnp.zeros(shape, dtype), -1 - site.positions, -1)
    key = jax.random.key(entropy or 0)
    with _Place(blueprint, site):
        built = entry.recipe(site, **({"rngs": nnx.Rngs(key)} if entry.needs else {}), **options)
        module, arrays = _module(built, key, example)
    params = {name: _cast(array, site.dtype) for name, array in arrays.items()}
    gated = blend == "gate"
    if gated:
        if not jnp.issubdtype(example.dtype, jnp.floating):
            raise SeedError(f"blueprint {blueprint!r} at layer {site.name!r} reads indices, which no gate can weigh")
        dtype = jax.dtypes.canonicalize_dtype(jnp.dtype(site.dtype))
        gate = {_GATE[0]: jnp.zeros((1, example.shape[-1]), dtype), _GATE[1]: jnp.zeros(1, dtype)}
        params = {_OF_KERNEL + name: array for name, array in params.items()} | gate
    given = tuple(sorted({**entry.options, **options}.items()))
    twin = Twin(entry.twin, site, given, entry.placement, gated) if entry.twin else None
    kernel = FlaxKernel(blueprint, site, module, gated, twin, described(built))
    # What it cannot do shows now, and not in the first step with it.
    jax.eval_shape(partial(kernel.run, train=True, key=key), params, jnp.zeros(shape, example.dtype))
    return FlaxSprout(kernel, params, entry.placement, given)


def _module(built: Any, key: jax.Array, example: jax.Array) -> tuple[LinenModule | NnxModule, Arrays]:
    if isinstance(built, linen.Module):
        return LinenModule.begun(built, key, example)
    if isinstance(built, nnx.Module):
        return NnxModule.begun(built)
    raise SeedError(f"its recipe returns a {type(built).__name__}, not a module of flax.linen or flax.nnx")


def _cast(array: jax.Array, dtype: str) -> jax.Array:
    wanted = jax.dtypes.canonicalize_dtype(jnp.dtype(dtype))
    return array.astype(wanted) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _features_last(value: Value, positions: int) -> jax.Array:
    if isinstance(value, ChannelsLast) and value.ndim == positions + 2:
        return value.array
    return jnp.moveaxis(in_torch_order(value), -1 - positions, -1)


class _Place:
    """Errors of Flax's, and of shapes that do not go together, with the blueprint and the layer in front."""

    def __init__(self, blueprint: str, site: LayerSite) -> None:
        self.where = f"blueprint {blueprint!r} at layer {site.name!r}"
        self.unknown = "" if site.input else "; its shapes are not known yet: call the model once before"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, MissingKeyError):
            raise MissingKeyError(f"{self.where} draws random numbers, and there is no key; give `key=`") from error
        if isinstance(error, SeedError):
            raise SeedError(f"{self.where}: {error}") from error
        if isinstance(error, FlaxError | TypeError | ValueError):
            said = re.sub(r"\s*\(https://flax\S*\)", "", str(error))
            raise SeedError(f"{self.where} does not fit: {said}{self.unknown}") from error
