"""A kernel as one file: safetensors, whose header also says what kernel it is and holds its Programs. No pickle.

Nothing is made of what is read before the file's own SHA-256, of all that it says and holds, is right; and it is
believed only once that of what a digest names is, too: recipe, layer and parameters.
"""

from __future__ import annotations

import hashlib
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
from esper.persistence.tensors import DTYPES, read_metadata, read_tensors, tensor_bytes
from esper.program import LayerSite, Recipe, Signature, Static, TensorType, Tree, verify
from esper.program.codec import to_body

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
        arrays = params | fetched(writer.arrays)
        return tensor_bytes(arrays, {_ENTRY: canonical({**manifest, "sum": _sum(manifest, arrays)})})
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
    said = read_metadata(data, where)
    text = said[_ENTRY]
    if said.keys() - {_ENTRY, DTYPES}:
        raise CorruptFileError(f"{where} says more than esper writes: {sorted(said.keys() - {_ENTRY, DTYPES})}")
    if len(text) > _LARGEST_MANIFEST:
        raise CorruptFileError(f"{where}: its manifest has {len(text)} bytes, and at most {_LARGEST_MANIFEST} are read")
    manifest = json.loads(text)
    if manifest["schema"] != SCHEMA:
        raise ArtifactError(
            f"{where} is of the format {manifest['schema']!r:.80}, and this version of esper reads {SCHEMA!r}: use a "
            "newer esper"
        )
    arrays, recipe, noted = read_tensors(data, where), manifest["recipe"], manifest.pop("sum")
    if noted != _sum(manifest, arrays):
        raise CorruptFileError(f"{where} does not have the SHA-256 that was noted in it")
    strange = arrays.keys() - {name for name in arrays if name.startswith(_PARAMS)} - _named(manifest["carried"])
    if strange:
        raise CorruptFileError(f"{where} holds arrays that nothing names: {sorted(strange)}")
    params = {n.removeprefix(_PARAMS): _on_device(a, n) for n, a in arrays.items() if n.startswith(_PARAMS)}
    items = {name: tuple((key, tuples(v)) for key, v in recipe[name].items()) for name in ("options", "attributes")}
    wanted = digest or manifest["digest"]
    artifact = KernelArtifact(**{**recipe, **items}, params=params)
    if artifact.digest != wanted or manifest["digest"] != wanted:
        raise _damaged(wanted, f"{where} holds {artifact.digest}")
    return replace(artifact, carried=_carried(manifest["carried"], arrays)), manifest.get("about", {})


def _sum(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of all that a file says and holds."""
    forms = [[name, str(array.dtype), list(array.shape)] for name, array in sorted(arrays.items())]
    hasher = hashlib.sha256(canonical([manifest, forms]).encode())
    for _, array in sorted(arrays.items()):
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def programs_of(artifact: KernelArtifact) -> str:
    """The SHA-256 of what an artifact carries, as far as it decides what a kernel does; empty: it carries nothing.

    By which calls the Programs were captured, and beside which layer, is no part of it.
    """
    carried = artifact.carried
    if carried is None:
        return ""
    bodies = sorted({canonical(to_body(program)) for _, program in carried.captures})
    said = [carried.blueprint, repr(carried.options), carried.gated, carried.placement, carried.description]
    drawn = [list(carried.names), to_body(carried.birth), dict(carried.copied)]
    return _sum({"said": said, "drawn": drawn, "captures": bodies}, fetched(dict(carried.constants)))


def _named(held: Any) -> set[str]:
    """The arrays that what is carried names."""
    if isinstance(held, list):
        return set().union(*map(_named, held))
    if isinstance(held, dict):
        own = {held[kind] for kind in ("array", "numpy", "scalar") if isinstance(held.get(kind), str)}
        return own.union(*map(_named, held.values()))
    return set()


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
        "again from where it came from, or retire it (`esper library retire`; `verify` lists all that are damaged)"
    )
