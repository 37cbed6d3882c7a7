"""A model's kernel as the library wants it: with its Programs, what it costs, and what its host was."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial

import jax

from esper.errors import SeedError, TraceError, UnknownBlueprintError
from esper.jax_backend.artifact import KernelArtifact, artifact_of
from esper.jax_backend.flops import flops
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.slots import held_kernel
from esper.jax_backend.source import Kernel, NativeKernel
from esper.program import Recipe
from esper.program.feeding import fed_to


def with_programs(model: MorphableModel, *, layer: str, seed: int = 0) -> tuple[KernelArtifact, int]:
    """The kernel of a seed, with the Programs by which a model without torch can load it; and its FLOPs.

    Where it cannot be run without its blueprint, such as one that is written in Flax, it carries none.

    Raises:
        UnknownLayerError, SeedError, ArtifactError: As `esper.jax_backend.artifact.artifact_of`.
    """
    artifact = artifact_of(model, layer=layer, seed=seed)
    kernel = held_kernel(model.structure, layer, seed)
    assert kernel is not None, layer
    one = jax.ShapeDtypeStruct(*kernel.site.fed(kernel.placement))
    cost = flops(partial(kernel_output, kernel.source, train=False), dict(artifact.params), one)
    return replace(artifact, carried=_recipe(model, kernel)), cost


def fingerprint(model: MorphableModel) -> str:
    """Names a host by its parts and their settings, whatever values it has."""
    return hashlib.sha256(model.structure.source.description.encode()).hexdigest()[:16]


def _recipe(model: MorphableModel, kernel: Kernel) -> Recipe | None:
    source = model.structure.source
    fed = list(fed_to(source.captures, kernel.layer))
    if isinstance(kernel.source, NativeKernel) or not fed:
        return None
    try:
        return source.recipe(kernel.blueprint, kernel.site, dict(kernel.options), kernel.blend == "gate", fed)
    except (TraceError, UnknownBlueprintError, SeedError):
        return None  # it can be loaded where its blueprint is registered, as any other
