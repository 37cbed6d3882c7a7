"""KernelArtifact: a trained kernel as plain data, addressed by the SHA-256 of all that it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from esper.errors import ArtifactError, SeedError
from esper.jax_backend.devices import fetched
from esper.jax_backend.interchange import is_traced
from esper.jax_backend.slots import held_kernel, place, seed_row, seed_state
from esper.lifecycle import SeedLifecycleState
from esper.program import Recipe

if TYPE_CHECKING:  # the model's methods are made of these functions
    from esper.jax_backend.model import MorphableModel

SCHEMA = "esper.kernel/1"
Items = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)
class KernelArtifact:
    """One trained kernel: the recipe that builds it, the layer it was built for, its parameters.

    Two artifacts are equal if their content is, bit for bit. The digest is made with the artifact, which reads the
    arrays once; they stay where they are, and are shared with whoever made the artifact.

    Attributes:
        blueprint: Name of the recipe.
        options: The recipe's options, defaults included.
        blend: How it joins a layer's output.
        placement: What it is fed, "parallel" or "sequential".
        kind: The kind of layer that it was built for, such as "Linear".
        attributes: That layer's geometry, such as ("in_features", 784).
        dtype: torch's name of the dtype of that layer's parameters.
        module: What the recipe built, as its source describes it. A recipe may read the layer itself: shapes
            alone do not show which activation it found there.
        params: Its parameters by torch name.
        carried: What builds and runs such kernels where their blueprint is not known, such as in a model that was
            loaded without torch; None: it needs the blueprint. No part of the digest.
        digest: "sha256:" and 64 hexadecimal digits, see `digest_of`.

    Raises:
        ArtifactError: An option that JSON cannot hold, or parameters that are no JAX arrays or hold no values.
    """

    blueprint: str
    options: Items
    blend: str
    placement: str
    kind: str
    attributes: Items
    dtype: str
    module: str = field(repr=False)
    params: Mapping[str, jax.Array] = field(repr=False)
    carried: Recipe | None = field(default=None, repr=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", dict(self.params))
        object.__setattr__(self, "digest", digest_of(self))

    @property
    def nbytes(self) -> int:
        """Memory of its parameters."""
        return sum(array.nbytes for array in self.params.values())

    @property
    def kernel_id(self) -> int:
        """The first 32 bits of the digest, by which the seed state names it."""
        return int(self.digest.removeprefix("sha256:")[:8], 16)

    @property
    def alive(self) -> bool:
        """Whether its arrays still hold values; a compiled step that is given them to reuse deletes them."""
        return not any(array.is_deleted() for array in self.params.values())

    @property
    def recipe(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        plain = ("blueprint", "blend", "placement", "kind", "dtype", "module")
        items = {"options": dict(self.options), "attributes": dict(self.attributes)}
        return {name: getattr(self, name) for name in plain} | items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelArtifact) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def artifact_of(model: MorphableModel, *, layer: str, seed: int = 0) -> KernelArtifact:
    """The kernel that a seed holds; the model stays as it is, and the arrays are the model's own.

    A training step that donates the model's arrays deletes those of the artifact with them.

    Raises:
        UnknownLayerError: No such layer.
        SeedError: The seed holds no kernel, or the model is abstract, inside a JAX transformation.
        ArtifactError: As `KernelArtifact`.
    """
    row, kernel = seed_row(model.structure, layer, seed), held_kernel(model.structure, layer, seed)
    if (
        kernel is None or seed_state(model, row, seed) is SeedLifecycleState.DORMANT
    ):  # what waits there is no kernel yet
        raise SeedError(f"{place(layer, seed)} holds no kernel to take out: germinate or load one first")
    return KernelArtifact(
        blueprint=kernel.blueprint,
        options=kernel.options,
        blend=kernel.blend,
        placement=kernel.placement,
        kind=kernel.site.kind,
        attributes=kernel.site.attributes,
        dtype=kernel.site.dtype,
        module=kernel.source.description,
        params=model.params["kernels"][layer][seed],
    )


def digest_of(artifact: KernelArtifact) -> str:
    """The SHA-256 of an artifact's content, from its arrays as they are now; one read of the device.

    What is hashed: the length of the header (8 bytes, little-endian); the header, which is JSON in ASCII with sorted
    keys and no spaces and holds the schema, the recipe, and dtype and shape of every parameter; the parameters' bytes
    in the order of their names, row-major and little-endian.

    Raises:
        ArtifactError: As `KernelArtifact`.
    """
    names = sorted(artifact.params)
    _check_arrays(artifact)
    arrays = dict(zip(names, fetched([artifact.params[name] for name in names]), strict=True))
    header = _header(artifact, arrays)
    hasher = hashlib.sha256(len(header).to_bytes(8, "little") + header)
    for name in names:
        hasher.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return f"sha256:{hasher.hexdigest()}"


def verify_digest(artifact: KernelArtifact, digest: str | None = None) -> None:
    """Checks that an artifact's arrays and recipe are still what its digest, or the one given, names.

    Raises:
        ArtifactError: They are not.
    """
    wanted, found = digest or artifact.digest, digest_of(artifact)
    if found != wanted:
        raise ArtifactError(
            f"kernel {artifact.blueprint!r}: its content has the digest {found}, and {wanted} was expected, so it has "
            "been changed or damaged; take it from where it came from again"
        )


def _check_arrays(artifact: KernelArtifact) -> None:
    for name, array in artifact.params.items():
        reason = None
        if not isinstance(array, jax.Array):
            reason = f"is a {type(array).__name__}; give a JAX array"
        elif is_traced(array):
            reason = "is abstract; an artifact is made between steps, not inside jax.jit"
        elif array.is_deleted():
            reason = "has been deleted by a step that it was donated to; make the artifact before that step"
        if reason:
            raise ArtifactError(f"kernel {artifact.blueprint!r}: parameter {name!r} {reason}")


def _header(artifact: KernelArtifact, arrays: Mapping[str, np.ndarray]) -> bytes:
    params = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    header = {"schema": SCHEMA, **artifact.recipe, "params": params}
    try:
        return json.dumps(header, sort_keys=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"kernel {artifact.blueprint!r}: its options {dict(artifact.options)} cannot be written down ({error}); "
            "let the blueprint take numbers and names only"
        ) from error
