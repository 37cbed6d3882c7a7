"""A model's arrays under the keys that torch has for them, and checkpoints of torch's into a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from esper.errors import NotInTorchError
from esper.jax_backend.devices import whole
from esper.jax_backend.interchange import adopt
from esper.jax_backend.source import NativeKernel
from esper.program import Growth

if TYPE_CHECKING:  # the model's methods are made of these functions
    from esper.jax_backend.model import MorphableModel


def host_arrays(model: MorphableModel) -> dict[str, Any]:
    """Parameters and buffers by torch name, in memory that this process can read."""
    return {name: whole(array) for name, array in {**model.params["host"], **model.buffers}.items()}


def live_growths(model: MorphableModel, *, twins: bool = False) -> list[Growth]:
    """The kernels that take part in the forward, by layer and seed, for a module of torch's.

    Args:
        model: The model.
        twins: Whether kernels that are written in Flax may be there by a twin.

    Raises:
        NotInTorchError: Some of them are written in Flax, and have no twin or may not be there.
    """
    live, alpha = np.asarray(model.seeds.live()), np.asarray(model.seeds.alpha)
    held = [k for k in model.structure.kernels if live[model.structure.row(k.layer), k.seed]]
    native = [k for k in held if isinstance(k.source, NativeKernel) and not (twins and k.source.twin)]
    if native:
        raise NotInTorchError([(k.layer, k.seed, k.blueprint) for k in native])
    found = []
    for kernel in held:
        arrays = model.params["kernels"][kernel.layer][kernel.seed]
        found.append(
            Growth(
                layer=kernel.layer,
                seed=kernel.seed,
                placement=kernel.placement,
                blend=kernel.blend,
                alpha=float(alpha[model.structure.row(kernel.layer), kernel.seed]),
                params={name: whole(array) for name, array in arrays.items()},
                source=kernel.source,
                input=model.structure.site(kernel.layer).input,
                blueprint=kernel.blueprint,
                twin=kernel.source.twin if isinstance(kernel.source, NativeKernel) else None,
            )
        )
    return found


def loaded_state(model: MorphableModel, given: Any, strict: bool) -> tuple[MorphableModel, Any]:
    """The model with the values of a checkpoint in the place of its own, and which keys did not match."""
    source, growths = model.structure.source, live_growths(model)
    host, kernels, keys = source.load_state_dict(host_arrays(model), growths, given, strict)
    new = {name: _adopted(model, tensor, name) for name, tensor in host.items()}
    params = {name: new[name] for name in model.params["host"]}
    grown = {layer: dict(seeds) for layer, seeds in model.params["kernels"].items()}
    for growth, held in zip(growths, kernels, strict=True):
        place = f"{growth.layer}, seed {growth.seed}: "
        arrays = {name: _adopted(model, tensor, place + name) for name, tensor in held.items()}
        grown[growth.layer][growth.seed] = _lying_as(grown[growth.layer][growth.seed], arrays)
    return model.replace(
        params={"host": _lying_as(model.params["host"], params), "kernels": grown},
        buffers=_lying_as(model.buffers, {name: new[name] for name in model.buffers}),
    ), keys


def _adopted(model: MorphableModel, tensor: Any, place: str) -> jax.Array:
    return adopt(model.structure.source, tensor, place)


def _lying_as(old: Mapping[str, jax.Array], new: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The new arrays on the devices of the old ones."""
    return {
        name: jax.device_put(array, old[name].sharding) if old[name].committed else array for name, array in new.items()
    }
