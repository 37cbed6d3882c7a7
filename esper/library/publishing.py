"""A model's kernels as the library wants them: with their Programs, what they cost, and what their host was."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from esper.errors import EsperError, LibraryError, SeedError, TraceError, UnknownBlueprintError
from esper.jax_backend.artifact import KernelArtifact, artifact_of
from esper.jax_backend.flops import flops
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.slots import held_kernel
from esper.jax_backend.source import Kernel, NativeKernel
from esper.library.entries import HeldOutGain, Measured, Origin, measured
from esper.library.files import Parcel, delivered, left_for_later
from esper.library.library import Library
from esper.lifecycle import SeedLifecycleState
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


@dataclass(frozen=True)
class Published:
    """What became of a run's kernels.

    Attributes:
        digests: Those that are in the library.
        waiting: Files of those that could not be delivered, in the outbox.
        problem: Why they could not; empty: all went well.
        lost: How many could neither be delivered nor kept.
    """

    digests: tuple[str, ...] = ()
    waiting: tuple[Path, ...] = ()
    problem: str = ""
    lost: int = 0

    def __str__(self) -> str:
        said = f"published {len(self.digests)} kernels: {', '.join(self.digests)}" if self.digests else ""
        if not self.problem:
            return said or "no kernel became permanent, so none is published"
        kept = "no kernel became permanent" if not (said or self.waiting or self.lost) else ""
        if self.waiting:
            kept = f"{len(self.waiting)} kernels wait in {self.waiting[0].parent}: `esper library push` delivers them"
        lost = f"{self.lost} kernels could not be kept" if self.lost else ""
        return "; ".join(filter(None, (said, self.problem, kept, lost)))


def publish(
    opened: Callable[[], Library],
    folder: Path,
    model: MorphableModel,
    *,
    origin: Origin,
    gains: Mapping[tuple[str, int], HeldOutGain | Measured],
    parents: Mapping[tuple[str, int], str],
    tags: Sequence[str] = (),
) -> Published:
    """Puts the kernels of a model that are FOSSILIZED into a library, or keeps them where it cannot be reached.

    Args:
        opened: Opens the library.
        folder: Where what cannot be delivered is kept, in an outbox.
        model: The model.
        origin: What is to be said of where they come from.
        gains: Their held-out gains; one that is above 0 is what made its kernel stay, and validates it.
        parents: Digests of the kernels that they were made of.
        tags: Their tags.

    Returns:
        What became of them. Nothing is raised for what is wrong with a library, or a kernel: the run has its model.
    """
    digests, files, problems, lost = [], [], [], 0
    try:
        library: Library | None = opened()
    except Exception as error:
        library = None
        problems.append(problem_of(error))
    for at in _permanent(model):
        try:
            told = replace(
                origin, gain=_finite(gains.get(at)), parent=_whole(parents.get(at, "")), model=fingerprint(model)
            )
            parcel = _parcel(model, at, told, tags)
            try:
                digests.append(_delivered(library, parcel))
            except LibraryError as error:
                library = None  # for the others too: each would wait for it as long
                problems.append(str(error))
                files.append(left_for_later(folder, parcel))
        except Exception as error:
            lost += 1
            problems.append(problem_of(error))
    return Published(tuple(digests), tuple(files), "; ".join(dict.fromkeys(filter(None, problems))), lost)


def problem_of(error: Exception) -> str:
    """What went wrong; what is no error of esper's with its kind, which its text alone may not show."""
    return str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"


def _finite(gain: HeldOutGain | Measured | None) -> Measured | None:
    """The gain, if it is one: a kernel that diverged has none."""
    return measured(gain) if gain is not None and math.isfinite(gain.mean) else None


def _whole(parent: str) -> str:
    """The parent if it is a whole digest: a policy may have loaded it by the beginning of one."""
    return parent if re.fullmatch(r"sha256:[0-9a-f]{64}", parent) else ""


def _delivered(library: Library | None, parcel: Parcel) -> str:
    if library is None:
        raise LibraryError("")
    return delivered(library, parcel)


def _parcel(model: MorphableModel, at: tuple[str, int], told: Origin, tags: Sequence[str]) -> Parcel:
    artifact, cost = with_programs(model, layer=at[0], seed=at[1])
    proven = told.gain is not None and told.gain.mean > 0
    return Parcel(artifact, (told,), cost, tuple(tags), "validated" if proven else "candidate")


def _permanent(model: MorphableModel) -> Iterator[tuple[str, int]]:
    states = np.asarray(model.seeds.lifecycle)
    for kernel in model.structure.kernels:
        if states[model.structure.row(kernel.layer), kernel.seed] == int(SeedLifecycleState.FOSSILIZED):
            yield kernel.layer, kernel.seed


def git_revision() -> str:
    """The git revision of the folder that the process works in; empty where there is none."""
    try:
        told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""
