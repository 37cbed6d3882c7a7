"""Artifacts on their way: with all that a library knows of them, from one to another or as files of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from esper.errors import ArtifactError, LibraryError
from esper.jax_backend.artifact import KernelArtifact
from esper.library.content import LARGEST, pack, unpack
from esper.library.entries import Origin, checked_flops, checked_lifecycle, checked_tags, is_positive
from esper.library.library import Library
from esper.persistence import reading
from esper.persistence.folder import write_file

SUFFIX = ".esper"
OUTBOX = "outbox"
BAD = ".bad"


@dataclass(frozen=True)
class Parcel:
    """An artifact, and what a library has been told of it.

    Attributes:
        artifact: The kernel.
        told: Where it came from, and what was measured; the last gain is the one that it is found by.
        flops: Operations of its forward for one example.
        tags: Its tags.
        lifecycle: "candidate", "validated" or "retired".
    """

    artifact: KernelArtifact
    told: tuple[Origin, ...] = ()
    flops: int | None = None
    tags: tuple[str, ...] = ()
    lifecycle: str = "candidate"


def taken(library: Library, digest: str) -> Parcel:
    """What a library has of a kernel; raises as `Library.get`."""
    entry = library.entry(digest)
    artifact, told = library.get(entry.digest), library.origins(entry.digest)
    return Parcel(artifact, told, entry.flops, entry.tags, entry.lifecycle)


def delivered(library: Library, parcel: Parcel) -> str:
    """Puts a parcel into a library, and adds to what is known there; its digest. Raises as `Library.put`."""
    proven = parcel.lifecycle == "validated" and any(is_positive(origin.gain) for origin in parcel.told)
    stage = "validated" if proven else "candidate"
    return library.add(parcel.artifact, told=parcel.told, flops=parcel.flops, tags=parcel.tags, lifecycle=stage)


def write_parcel(file: Path, parcel: Parcel) -> None:
    """Writes a parcel as a file of safetensors; atomic.

    Raises:
        LibraryError: The file cannot be written.
        ArtifactError: As `pack`.
    """
    told = [{**origin.as_dict(), "time": origin.time and origin.time.isoformat()} for origin in parcel.told]
    about = {"told": told, "flops": parcel.flops, "tags": list(parcel.tags), "lifecycle": parcel.lifecycle}
    data = pack(parcel.artifact, about)
    try:
        write_file(file, data)
    except OSError as error:
        raise LibraryError(f"{file} cannot be written: {error.strerror}; take another place, or make room") from None


def read_parcel(file: Path) -> Parcel:
    """A parcel from a file.

    Raises:
        LibraryError: The file cannot be read.
        ArtifactError: It holds no kernel, or not what was written.
    """
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            raise LibraryError(f"{file} is no file of a kernel, which `esper library pull` writes")
        artifact, about = unpack(file.read_bytes(), str(file))
    except OSError as error:
        raise LibraryError(f"{file} cannot be read: {error.strerror}; see whether it is there and yours") from None
    try:
        with reading(file):
            told = tuple(map(_origin, about.get("told", ())))
            flops = checked_flops(about.get("flops"))
            tags, stage = checked_tags(about.get("tags", ())), checked_lifecycle(about.get("lifecycle", "candidate"))
            return Parcel(artifact, told, flops, tags, stage)
    except Exception as error:
        raise ArtifactError(f"{file} says of its kernel what no library has: {error}") from error


def _origin(held: dict[str, Any]) -> Origin:
    time = held.get("time")
    origin = Origin.from_dict({name: value for name, value in held.items() if name != "time"})
    return replace(origin, time=datetime.fromisoformat(time)) if time else origin


# ---- what could not be delivered ----------------------------------------------------------------------------------


def left_for_later(folder: Path, parcel: Parcel) -> Path:
    """Keeps a parcel in this machine's outbox until `delivered_later`.

    Raises:
        LibraryError: It cannot be written there.
    """
    named = hashlib.sha256(repr((parcel.artifact.digest, parcel.told, parcel.tags)).encode()).hexdigest()
    file = folder / OUTBOX / f"{parcel.artifact.digest[7:23]}-{named[:8]}{SUFFIX}"
    write_parcel(file, parcel)
    return file


def waiting(folder: Path) -> list[Path]:
    """What waits in the outbox."""
    return sorted((folder / OUTBOX).glob(f"*{SUFFIX}"))


def delivered_later(library: Library) -> Iterator[tuple[Path, str]]:
    """Delivers what waits in the outbox of the library's folder; each file goes once its kernel is there.

    A file that holds no kernel is renamed, `.bad` behind its name, and the others are delivered nevertheless.

    Raises:
        LibraryError: The library cannot be written; the rest waits on.
        ArtifactError: Files were renamed; once all others are delivered.
    """
    bad: list[str] = []
    for file in waiting(library.folder):
        try:
            parcel = read_parcel(file)
        except ArtifactError as error:
            with suppress(FileNotFoundError):
                file.replace(file.with_name(file.name + BAD))
            bad.append(str(error))
            continue
        except LibraryError:
            if not file.exists():
                continue  # another has delivered it meanwhile
            raise
        try:
            digest = delivered(library, parcel)
        except ArtifactError as error:
            bad.append(str(error))  # it waits on: the library has the kernel with other Programs
            continue
        file.unlink(missing_ok=True)  # whoever else delivers it removes it too
        yield file, digest
    if bad:
        raise ArtifactError(
            f"{len(bad)} files of the outbox {library.folder / OUTBOX} were not delivered; those that hold no kernel "
            f"have {BAD} behind their names now: {'; '.join(bad)}"
        )
