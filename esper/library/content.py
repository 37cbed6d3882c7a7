"""A kernel as one file: safetensors, whose header also says what kernel it is and holds its Programs. No pickle.

What is read is believed only once the SHA-256 of all that a digest names is right: recipe, layer and parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import ArtifactError, CorruptFileError, EsperError, StateError
from esper.jax_backend.artifact import KernelArtifact
from esper.jax_backend.devices import fetched
from esper.library.entries import canonical, tuples
from esper.persistence import reading
from esper.persistence.plain import Reader, Writer, table
from esper.persistence.tensors import read_metadata, read_tensors, tensor_bytes
from esper.program import LayerSite, Recipe, Signature, Static, TensorType, Tree, verify

SCHEMA = "esper.kernel-file/1"
LARGEST = 1 << 34
"""Bytes of the largest artifact that is read."""

_ENTRY = "esper.kernel"
_PARAMS, _CARRIED = "params/", "carried/"
_LARGEST_MANIFEST = 1 << 26
_CLASSES = table(Recipe, LayerSite, Signature, Static, TensorType, Tree)


def pack(artifact: KernelArtifact, about: Mapping[str, Any] | None = None) -> bytes:
    """An artifact as the content of a file.

    Args:
        artifact: The kernel.
        about: What else the file is to say of it, for JSON.

    Raises:
        ArtifactError: Its arrays hold no values any more, or something that no file can hold.
    """
    if not artifact.alive:
        raise ArtifactError(
            f"the arrays of {artifact.digest} were deleted by a step that they were donated to; put it in before that"
        )
    writer = Writer(_CLASSES, _CARRIED)
    try:
        manifest = {
            "schema": SCHEMA,
            "digest": artifact.digest,
            "recipe": artifact.recipe,
            "carried": writer.plain(artifact.carried, "what the kernel carries"),
            **({} if about is None else {"about": dict(about)}),
        }
        params = fetched({_PARAMS + name: array for name, array in artifact.params.items()})
        return tensor_bytes(params | fetched(writer.arrays), {_ENTRY: canonical(manifest)})
    except (StateError, TypeError, ValueError) as error:
        raise ArtifactError(f"{artifact.digest} cannot be written to a file: {error}") from error


def unpack(data: memoryview | bytes, where: str, digest: str | None = None) -> tuple[KernelArtifact, dict[str, Any]]:
    """The artifact that a file holds, and what the file says of it beside.

    Args:
        data: The file's content.
        where: Its name, for messages.
        digest: What it must be; None: what it says itself.

    Raises:
        ArtifactError: It is not what was written, or not that digest, or JAX's 64-bit mode is off and it needs it.
    """
    try:
        with reading(Path(where)):
            return _unpacked(memoryview(data), where, digest)
    except ArtifactError:
        raise
    except EsperError as error:
        raise _damaged(digest or where, str(error)) from error


def _unpacked(data: memoryview, where: str, digest: str | None) -> tuple[KernelArtifact, dict[str, Any]]:
    text = read_metadata(data, where)[_ENTRY]
    if len(text) > _LARGEST_MANIFEST:
        raise CorruptFileError(f"{where}: its manifest has {len(text)} bytes, and at most {_LARGEST_MANIFEST} are read")
    manifest = json.loads(text)
    if manifest["schema"] != SCHEMA:
        raise ArtifactError(
            f"{where} is of the format {manifest['schema']!r:.80}, and this version of esper reads {SCHEMA!r}: use a "
            "newer esper"
        )
    arrays, recipe = read_tensors(data, where), manifest["recipe"]
    params = {n.removeprefix(_PARAMS): _on_device(a, n) for n, a in arrays.items() if n.startswith(_PARAMS)}
    items = {name: tuple((key, tuples(v)) for key, v in recipe[name].items()) for name in ("options", "attributes")}
    wanted = digest or manifest["digest"]
    artifact = KernelArtifact(**{**recipe, **items}, params=params)
    if artifact.digest != wanted or manifest["digest"] != wanted:
        raise _damaged(wanted, f"{where} holds {artifact.digest}")
    return replace(artifact, carried=_carried(manifest["carried"], arrays)), manifest.get("about", {})


def _carried(held: Any, arrays: Mapping[str, np.ndarray]) -> Recipe | None:
    found = Reader(_CLASSES, arrays).value(held)
    if found is None:
        return None
    if not isinstance(found, Recipe):
        raise CorruptFileError(f"what it carries is a {type(found).__name__}, and a Recipe is expected")
    for program in (found.birth, *(program for _, program in found.captures)):
        verify(program)
    # Copies: what is kept beyond the reading does not lie in what was read.
    return replace(found, constants={name: np.array(array) for name, array in found.constants.items()})


def _on_device(array: np.ndarray, name: str) -> jax.Array:
    """The array in JAX's memory, in its own dtype.

    Raises:
        ArtifactError: JAX would carry it in another.
    """
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ArtifactError(
            f"{name} is of {array.dtype}, which needs JAX's 64-bit mode: "
            'jax.config.update("jax_enable_x64", True) before anything else'
        )
    return jnp.array(array)


def shapes_of(artifact: KernelArtifact) -> list[list[Any]]:
    """Name, dtype and shape of every parameter, by name."""
    return [[name, str(array.dtype), list(array.shape)] for name, array in sorted(artifact.params.items())]


def parameters_of(artifact: KernelArtifact) -> int:
    """How many numbers its parameters are."""
    return sum(math.prod(array.shape) for array in artifact.params.values())


def _damaged(what: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"{what} is not what was written: {found}. It was changed or damaged, and nothing of it was used; put it in "
        "again from where it came from, or retire it (`esper library verify` lists all that are damaged)"
    )
