"""Between entries and the catalogue's rows: how a row is made, merged, sealed and read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from esper.errors import ArtifactError
from esper.jax_backend.artifact import KernelArtifact
from esper.library.catalogue import Catalogue
from esper.library.content import parameters_of, shapes_of
from esper.library.entries import Entry, Measured, Origin, canonical, now, tuples
from esper.library.schema import attributes, kernels, origins, tags

Row = Mapping[str, Any]

_SEALED = [column.name for column in kernels.c if column.name not in ("checksum", "rank")]


def content_of(artifact: KernelArtifact) -> dict[str, Any]:
    """What a row says of an artifact that its content decides."""
    return {
        "digest": artifact.digest.removeprefix("sha256:"),
        "blueprint": artifact.blueprint,
        "options": canonical(dict(artifact.options)),
        "blend": artifact.blend,
        "placement": artifact.placement,
        "kind": artifact.kind,
        "attributes": canonical(dict(artifact.attributes)),
        "fits": fits(artifact.kind, dict(artifact.attributes), artifact.dtype),
        "dtype": artifact.dtype,
        "shapes": canonical(shapes_of(artifact)),
        "parameters": parameters_of(artifact),
        "bytes": artifact.nbytes,
    }


def fits(kind: str, geometry: Mapping[str, Any], dtype: str) -> str:
    """Names the layers that a kernel fits: equal for equal kinds, geometries and dtypes."""
    return hashlib.sha256(canonical([kind, dict(geometry), dtype]).encode()).hexdigest()


def gain_columns(gain: Measured | None) -> dict[str, Any]:
    """A gain as a row has it."""
    if gain is None:
        return {"gain_mean": None, "gain_stderr": None, "gain_n": None, "rank": -math.inf}
    return {"gain_mean": gain.mean, "gain_stderr": gain.stderr, "gain_n": gain.n, "rank": gain.mean}


def write(
    catalogue: Catalogue,
    connection: Connection,
    content: Row,
    given: Row,
    *,
    tagged: Sequence[str],
    told: Sequence[Origin],
    damaged: str | None = None,
) -> Row:
    """Puts a kernel into the catalogue, or adds to what is there: nothing that was known is lost.

    Args:
        catalogue: The catalogue.
        connection: A transaction of it that writes.
        content: As `content_of`.
        given: Other columns; of one that is there already, those that are None stay as they are.
        tagged: Its tags, sorted.
        told: Where it came from.
        damaged: An object that does not hold what it should, and is to be named no more.

    Returns:
        The row.
    """
    digest, moment = content["digest"], now()
    named = {"digest": digest, "rank": -math.inf}  # `seal` knows the rank
    fresh = {
        **content,
        **gain_columns(None),
        **{"flops": None, "lifecycle": "candidate", "reason": "", "retired": None, "carried": False},
        **{name: value for name, value in given.items() if value is not None},
        **{"created": moment, "updated": moment, "checksum": ""},
    }
    made = catalogue.insert_missing(kernels).values(**fresh).returning(kernels.c.digest)
    if connection.execute(made).first() is not None:
        geometry = json.loads(content["attributes"])
        rows = [{"name": name, "value": canonical(value), **named} for name, value in geometry.items()]
        if rows:
            connection.execute(catalogue.insert_missing(attributes), rows)
    else:
        update(connection, digest, _merged(held(connection, digest, lock=True), given, damaged))
    if tagged:
        connection.execute(catalogue.insert_missing(tags), [{"tag": tag, **named} for tag in tagged])
    tell(catalogue, connection, digest, told)
    return seal(connection, digest)


def tell(catalogue: Catalogue, connection: Connection, digest: str, told: Iterable[Origin]) -> None:
    """Adds origins to those that a kernel has."""
    for origin in told:
        values = {"id": origin.id, "digest": digest, "run": origin.run, "content": canonical(origin.as_dict())}
        connection.execute(catalogue.insert_missing(origins).values(**values, time=origin.time or now()))


def _merged(before: Row, given: Row, damaged: str | None) -> dict[str, Any]:
    """What changes of a row that is there: a proven kernel stays proven, and a retired one retired."""
    changes = {name: value for name, value in given.items() if value is not None}
    if before["lifecycle"] != "candidate":
        del changes["lifecycle"]
    if before["blob"] != damaged and not (given["carried"] and not before["carried"]):
        for name in ("carried", "blob", "blob_bytes"):  # what is there holds as much
            del changes[name]
    return changes


def update(connection: Connection, digest: str, changes: Mapping[str, Any]) -> None:
    """Changes columns of a row; `seal` follows."""
    values = {**changes, "updated": now()}
    connection.execute(sa.update(kernels).where(kernels.c.digest == digest).values(**values))


def held(connection: Connection, digest: str, *, lock: bool = False) -> Row:
    """A kernel's row.

    Raises:
        ArtifactError: There is none.
    """
    query = sa.select(kernels).where(kernels.c.digest == digest)
    found = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if found is None:
        raise ArtifactError(f"sha256:{digest} is not in the library any more")
    return dict(found)


def tags_of(connection: Connection, digests: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The tags of kernels, sorted."""
    found: dict[str, list[str]] = {}
    query = sa.select(tags.c.digest, tags.c.tag).where(tags.c.digest.in_(digests))
    for digest, tag in connection.execute(query):
        found.setdefault(digest, []).append(tag)
    return {digest: tuple(sorted(named)) for digest, named in found.items()}


def origins_of(connection: Connection, digest: str) -> tuple[Origin, ...]:
    """Where a kernel came from and was measured, the first first.

    Raises:
        ArtifactError: What was written there is not what was told.
    """
    query = sa.select(origins).where(origins.c.digest == digest).order_by(origins.c.time, origins.c.id)
    found = []
    for row in connection.execute(query).mappings():
        try:
            origin = Origin.from_dict({**json.loads(row["content"]), "time": row["time"]})
            sound = origin.id == row["id"] and origin.run == row["run"]
        except (TypeError, ValueError, AttributeError):
            sound, origin = False, Origin()
        if not sound:
            raise _changed(digest, "where it came from")
        found.append(origin)
    return tuple(found)


# ---- seals ------------------------------------------------------------------------------------------------------


def seal(connection: Connection, digest: str) -> Row:
    """Notes the SHA-256 of all that a row says, so that a change by anybody else shows; the row.

    Tags and attributes have the row's rank from then on.
    """
    row = held(connection, digest)
    value = _checksum(row, tags_of(connection, [digest]).get(digest, ()))
    connection.execute(sa.update(kernels).where(kernels.c.digest == digest).values(checksum=value))
    for table in (tags, attributes):
        connection.execute(sa.update(table).where(table.c.digest == digest).values(rank=row["rank"]))
    return row


def check_seal(row: Row, tagged: Sequence[str]) -> None:
    """Checks that a row is as the library wrote it.

    Raises:
        ArtifactError: It is not.
    """
    if row["checksum"] != _checksum(row, tagged):
        raise _changed(row["digest"], "its entry")


def check_content(row: Row, artifact: KernelArtifact) -> None:
    """Checks that a row says of an artifact what is so.

    Raises:
        ArtifactError: It does not.
    """
    wrong = [name for name, value in content_of(artifact).items() if row[name] != value]
    if wrong:
        raise _changed(row["digest"], f"its entry's {', '.join(wrong)}")


def _checksum(row: Row, tagged: Iterable[str]) -> str:
    plain = {name: _plain(row[name]) for name in _SEALED}
    return hashlib.sha256(canonical([plain, list(tagged)]).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _changed(digest: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"sha256:{digest}: {what} in the catalogue was changed by other means than the library's; retire it and put "
        "it in again, or bring the catalogue back from a backup"
    )


def entry(row: Row, tagged: Sequence[str]) -> Entry:
    """A row as an entry.

    Raises:
        ArtifactError: It is nothing that the library wrote.
    """
    try:
        return _entry(row, tagged)
    except (TypeError, ValueError, AttributeError) as error:
        raise _changed(row["digest"], f"its entry ({error})") from error


def _entry(row: Row, tagged: Sequence[str]) -> Entry:
    gain = None if row["gain_mean"] is None else Measured(row["gain_mean"], row["gain_stderr"], row["gain_n"])
    same = ("blend", "placement", "kind", "dtype", "parameters", "bytes", "flops", "lifecycle", "reason")
    return Entry(
        digest=f"sha256:{row['digest']}",
        blueprint=row["blueprint"],
        options=_items(row["options"]),
        attributes=_items(row["attributes"]),
        shapes=tuples(json.loads(row["shapes"])),
        gain=gain,
        tags=tuple(tagged),
        **{name: row[name] for name in (*same, "created", "updated", "carried", "blob", "blob_bytes")},
    )


def _items(text: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuples(value)) for name, value in json.loads(text).items())
