"""Between entries and the catalogue's rows: how a row is made, merged, sealed and read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from esper.errors import ArgumentError, ArtifactError
from esper.jax_backend.artifact import KernelArtifact
from esper.library.arguments import text
from esper.library.catalogue import Catalogue
from esper.library.content import parameters_of, programs_of, shapes_of
from esper.library.entries import Entry, Measured, Origin, canonical, now, tuples
from esper.library.labels import Label, bits
from esper.library.schema import attributes, kernels, origins, tags
from esper.persistence import MALFORMED

Row = Mapping[str, Any]

_TICK = timedelta(microseconds=1)  # as finely as both databases tell moments apart
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


def checked_content(artifact: KernelArtifact) -> dict[str, Any]:
    """As `content_of`, of what was checked to be a kernel that a catalogue can name.

    Raises:
        ArgumentError: It is none.
    """
    if not isinstance(artifact, KernelArtifact):
        raise ArgumentError(f"a KernelArtifact is put into a library, not {artifact!r:.80}")
    for name in ("blueprint", "blend", "placement", "kind", "dtype"):
        text(f"the {name} of a kernel", getattr(artifact, name))
    for name, _ in artifact.attributes:
        text("the name of an attribute", name)
    return content_of(artifact)


def fits(kind: str, geometry: Mapping[str, Any], dtype: str) -> str:
    """Names the layers that a kernel fits: equal for equal kinds, geometries and dtypes."""
    return hashlib.sha256(canonical([kind, dict(geometry), dtype]).encode()).hexdigest()


def gain_columns(gain: Measured | None, moment: datetime | None) -> dict[str, Any]:
    """A gain, and when the library was told of it, as a row has them."""
    if gain is None:
        return {**dict.fromkeys(("gain_mean", "gain_stderr", "gain_n", "gain_time")), "rank": -math.inf}
    measured = {"gain_mean": gain.mean, "gain_stderr": gain.stderr, "gain_n": gain.n}
    return {**measured, "gain_time": moment, "rank": gain.mean}


def _gain(row: Row) -> Measured | None:
    """The gain that a row has."""
    return None if row["gain_mean"] is None else Measured(row["gain_mean"], row["gain_stderr"], row["gain_n"])


def origin_row(digest: str, origin: Origin) -> dict[str, Any]:
    """An origin of a kernel as a row, with the SHA-256 of all that it says."""
    said = {"id": origin.id, "digest": digest, "run": origin.run, "time": origin.time}
    checksum = canonical([_plain(value) for value in said.values()])
    content = canonical(origin.as_dict())  # which the id names
    return {**said, "content": content, "checksum": hashlib.sha256(checksum.encode()).hexdigest()}


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
    stage = {"retired": moment} if given["lifecycle"] == "retired" else {}
    fresh = {
        **content,
        **gain_columns(None, None),
        **{"flops": None, "lifecycle": "candidate", "reason": "", "retired": None, "carried": False, "programs": ""},
        **{name: value for name, value in given.items() if value is not None},
        **stage,
        **{"created": moment, "updated": moment, "labels": 0, "checksum": ""},  # `seal` knows these two
    }
    made = catalogue.insert_missing(kernels).values(**fresh).returning(kernels.c.digest)
    if connection.execute(made).first() is None:
        before = held(connection, digest, lock=True)
        if is_sealed(connection, before) and all(before[name] == value for name, value in content.items()):
            update(connection, digest, _merged(before, given, damaged))
        else:
            connection.execute(sa.delete(tags).where(tags.c.digest == digest))
            update(connection, digest, fresh)
    _describe(connection, content)
    if tagged:
        named = [{"tag": tag, "digest": digest} for tag in tagged]
        connection.execute(catalogue.insert_missing(tags), named)
    unsound = [id for id, origin in _origins(connection, digest) if origin is None]
    connection.execute(sa.delete(origins).where(origins.c.digest == digest, origins.c.id.in_(unsound)))
    tell(connection, digest, told)
    return seal(connection, digest)


def _describe(connection: Connection, content: Row) -> None:
    """Writes the attributes of a kernel's layer down, one by one, whatever is there of them."""
    digest = content["digest"]
    connection.execute(sa.delete(attributes).where(attributes.c.digest == digest))
    rows = [{"digest": digest, "name": name, "value": value} for name, value in _geometry(content)]
    if rows:
        connection.execute(sa.insert(attributes), rows)


def _geometry(row: Row) -> list[tuple[str, str]]:
    """The attributes of a row's layer, as they are looked for."""
    return [(name, canonical(value)) for name, value in json.loads(row["attributes"]).items()]


def tell(connection: Connection, digest: str, told: Iterable[Origin]) -> None:
    """Adds origins to those that a kernel has; the gain that was measured last is what it is found by.

    What is told without a time is told now, after all that was told of the kernel before, whatever the clocks of those
    who told it said.

    Raises:
        ArtifactError: What was written there of its origins is not what was told.
    """
    known = {origin.id: origin for origin in origins_of(connection, digest)}
    row = held(connection, digest)
    for origin in told:
        before = known.get(origin.id)
        if before is not None and origin.gain is None and origin.time is None:
            continue  # it says nothing new, and nothing is measured again
        moment = origin.time or _after(row["gain_time"], *(one.time for one in known.values()))
        if before is None or before.time is None or before.time < moment:
            known[origin.id] = replace(origin, time=moment)
            connection.execute(sa.delete(origins).where(origins.c.digest == digest, origins.c.id == origin.id))
            connection.execute(sa.insert(origins).values(**origin_row(digest, known[origin.id])))
    # The row has its own, so that the gain stays where its origin was changed by other means and had to go.
    gains = [(one.time, name, one.gain) for name, one in known.items()] + [(row["gain_time"], "", _gain(row))]
    moment, _, gain = max((one for one in gains if one[2] is not None), default=(None, "", None), key=itemgetter(0, 1))
    update(connection, digest, gain_columns(gain, moment))


def _after(*moments: datetime | None) -> datetime:
    """The time, or the first moment after all of these where it is behind them."""
    return max([now(), *(one + _TICK for one in moments if one is not None)])


def _merged(before: Row, given: Row, damaged: str | None) -> dict[str, Any]:
    """What changes of a row that is there: a proven kernel stays proven, and one that was retired is back.

    Raises:
        ArtifactError: The kernel comes with other Programs than it has.
    """
    changes = {name: value for name, value in given.items() if value is not None and name != "lifecycle"}
    if before["carried"] and given["carried"] and before["programs"] != given["programs"]:
        raise ArtifactError(
            f"sha256:{before['digest']}: the library has this kernel with other Programs, so one of the two computes "
            "something else; put it in without what it carries, or take the one that is there"
        )
    if before["blob"] != damaged and not (given["carried"] and not before["carried"]):
        for name in ("carried", "programs", "blob", "blob_bytes"):  # what is there holds as much
            del changes[name]
    return changes | _stage(before["lifecycle"], given["lifecycle"])


def _stage(before: str, given: str) -> dict[str, Any]:
    """What changes of a kernel's stage."""
    if before == given or (before == "validated" and given == "candidate"):
        return {}
    return {"lifecycle": given, "reason": "", "retired": now() if given == "retired" else None}


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
    found = [origin for _, origin in _origins(connection, digest)]
    sound = [origin for origin in found if origin is not None]
    if len(sound) != len(found):
        raise _changed(digest, "where it came from")
    return tuple(sound)


def _origins(connection: Connection, digest: str) -> Iterator[tuple[str, Origin | None]]:
    """What was written of where a kernel came from, by its name; None: it is not what was told."""
    query = sa.select(origins).where(origins.c.digest == digest).order_by(origins.c.time, origins.c.id)
    for row in connection.execute(query).mappings():
        yield row["id"], _origin(row)


def _origin(row: Mapping[Any, Any]) -> Origin | None:
    """What was told; None: it is not what is written there."""
    try:
        origin = Origin.from_dict({**json.loads(row["content"]), "time": row["time"]})
        sound = origin.time is not None and origin_row(row["digest"], origin) == dict(row)
    except MALFORMED:
        return None
    return origin if sound else None


def of_run(connection: Connection, run: str, digests: Sequence[str]) -> set[str]:
    """Those of some kernels that were told to come from a run."""
    query = sa.select(origins).where(origins.c.run == run, origins.c.digest.in_(digests))
    return {row["digest"] for row in connection.execute(query).mappings() if _origin(row) is not None}


# ---- seals ------------------------------------------------------------------------------------------------------


def seal(connection: Connection, digest: str) -> Row:
    """Notes the SHA-256 of all that a row says, so that a change by anybody else shows; the row."""
    row, tagged = held(connection, digest), tags_of(connection, [digest]).get(digest, ())
    row = {**row, "labels": bits(_labels(connection, row, tagged))}
    row["checksum"] = _checksum(row, tagged)
    values = {name: row[name] for name in ("labels", "checksum")}
    connection.execute(sa.update(kernels).where(kernels.c.digest == digest).values(**values))
    return row


def _labels(connection: Connection, row: Row, tagged: Iterable[str]) -> Iterator[Label]:
    """What a kernel is found by besides its columns."""
    yield "fits", row["fits"]
    yield from (("tag", tag) for tag in tagged)
    yield from (("attribute", *one) for one in _geometry(row))
    runs = sa.select(origins.c.run).where(origins.c.digest == row["digest"])
    yield from (("run", run) for run in connection.execute(runs).scalars())


def is_sealed(connection: Connection, row: Row) -> bool:
    """Whether a row is as the library wrote it."""
    try:
        check_seal(row, tags_of(connection, [row["digest"]]).get(row["digest"], ()))
    except ArtifactError:
        return False
    return True


def check_seal(row: Row, tagged: Sequence[str]) -> None:
    """Checks that a row is as the library wrote it.

    Raises:
        ArtifactError: It is not.
    """
    try:
        sound = row["checksum"] == _checksum(row, tagged)
        sound = sound and row["rank"] == (-math.inf if row["gain_mean"] is None else row["gain_mean"])
    except MALFORMED:
        sound = False
    if not sound:
        raise _changed(row["digest"], "its entry")


def check_labels(connection: Connection, row: Row, tagged: Sequence[str]) -> None:
    """Checks that a sealed row is found by what it says, and by nothing else.

    Raises:
        ArtifactError: It is not.
    """
    query = sa.select(attributes.c.name, attributes.c.value).where(attributes.c.digest == row["digest"])
    named = {(name, value) for name, value in connection.execute(query)}
    if named != set(_geometry(row)) or row["labels"] != bits(_labels(connection, row, tagged)):
        raise _changed(row["digest"], "what it is found by")


def check_geometry(one: Entry, geometry: Mapping[str, Any]) -> None:
    """Checks that an entry says of its layer what it was found by.

    Raises:
        ArtifactError: It does not.
    """
    said = dict(one.attributes)
    wrong = [name for name, value in geometry.items() if name not in said or canonical(said[name]) != canonical(value)]
    if wrong:
        raise _changed(one.digest.removeprefix("sha256:"), f"what it is found by, its {', '.join(wrong)},")


def check_told(digest: str, told: Container[str]) -> None:
    """Checks that a kernel is one of those that came from where it was found by.

    Raises:
        ArtifactError: It is not.
    """
    if digest not in told:
        raise _changed(digest, "where it came from")


def check_content(row: Row, artifact: KernelArtifact) -> None:
    """Checks that a row says of an artifact what is so.

    Raises:
        ArtifactError: It does not.
    """
    wanted = {**content_of(artifact), "carried": artifact.carried is not None, "programs": programs_of(artifact)}
    wrong = [name for name, value in wanted.items() if row[name] != value]
    if wrong:
        raise _changed(row["digest"], f"its entry's {', '.join(wrong)}")


def _checksum(row: Row, tagged: Iterable[str]) -> str:
    plain = {name: _plain(row[name]) for name in _SEALED}
    return hashlib.sha256(canonical([plain, list(tagged)]).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _changed(digest: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"sha256:{digest}: {what} in the catalogue was changed by other means than the library's; put it in "
        "again from where it came from, retire it (`esper library retire`), or bring the catalogue back from a backup"
    )


def entry(row: Row, tagged: Sequence[str]) -> Entry:
    """A row as an entry.

    Raises:
        ArtifactError: It is not as the library wrote it.
    """
    check_seal(row, tagged)
    try:
        return _entry(row, tagged)
    except MALFORMED as error:
        raise _changed(row["digest"], f"its entry ({error})") from error


def _entry(row: Row, tagged: Sequence[str]) -> Entry:
    same = ("blend", "placement", "kind", "dtype", "parameters", "bytes", "flops", "lifecycle", "reason")
    return Entry(
        digest=f"sha256:{row['digest']}",
        blueprint=row["blueprint"],
        options=_items(row["options"]),
        attributes=_items(row["attributes"]),
        shapes=tuples(json.loads(row["shapes"])),
        gain=_gain(row),
        tags=tuple(tagged),
        **{name: row[name] for name in (*same, "created", "updated", "carried", "blob", "blob_bytes")},
    )


def _items(text: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuples(value)) for name, value in json.loads(text).items())
