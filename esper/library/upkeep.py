"""Looking through a library: what is damaged, and what can go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jax
import sqlalchemy as sa

from esper.errors import ArgumentError, ArtifactError, LibraryError
from esper.library.blobs import Blobs, Object
from esper.library.catalogue import Catalogue
from esper.library.entries import Collected, Verified, now
from esper.library.rows import check_labels, check_seal, origins_of, tags_of
from esper.library.schema import kernels

if TYPE_CHECKING:
    from esper.library.library import Library

WRITING = timedelta(hours=1)
"""How long a file that is being written into is left alone, whatever the grace period is."""

_PAGE = 200


def verified(library: Library, catalogue: Catalogue, blobs: Blobs) -> Verified:
    """What is missing, damaged, or named by nobody."""
    problems, checked = [], 0
    for row in _rows(catalogue):
        checked += 1
        try:
            _check(library, catalogue, row)
        except LibraryError:
            raise
        except Exception as error:  # whatever one row makes of itself, the others are looked at
            if _is_there(catalogue, row):  # else it was changed or removed meanwhile, as it may be
                said = str(error) if isinstance(error, ArtifactError) else f"{type(error).__name__}: {error}"
                problems.append((f"sha256:{row['digest']}", said))
    return Verified(checked, tuple(problems), tuple(one.path for one in _unnamed(catalogue, blobs)))


def collected(catalogue: Catalogue, blobs: Blobs, grace: timedelta, *, dry_run: bool) -> Collected:
    """Removes retired kernels and objects that nobody names, older than the grace period.

    What a write left unfinished is an hour old at least: a younger one may be going on.
    """
    before, unfinished = _ago(grace), _ago(max(grace, WRITING))
    retired = _retired(catalogue, before)
    going = {row["blob"] for row in retired}
    old = [(one, before if one.digest else unfinished) for one in _unnamed(catalogue, blobs, going)]
    candidates = [(one, limit) for one, limit in old if one.modified <= limit]
    if dry_run:
        return _said(retired, [one for one, _ in candidates], dry_run=True)
    gone = [row for row in retired if _forgotten(catalogue, row, before)]
    removed = [one for one, limit in candidates if _removed(catalogue, blobs, one, limit)]
    return _said(gone, removed, dry_run=False)


def _ago(grace: timedelta) -> datetime:
    """When a grace period began that ends now.

    Raises:
        ArgumentError: It is none.
    """
    if not isinstance(grace, timedelta):
        raise ArgumentError(f"the grace period is a timedelta, not {grace!r:.80}")
    if grace < timedelta(0):
        raise ArgumentError(f"the grace period is not negative: {grace}")
    try:
        return now() - grace
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _said(retired: list[Mapping[str, Any]], objects: list[Object], *, dry_run: bool) -> Collected:
    digests = tuple(f"sha256:{row['digest']}" for row in retired)
    return Collected(digests, tuple(one.path for one in objects), sum(one.bytes for one in objects), dry_run)


def _check(library: Library, catalogue: Catalogue, row: Mapping[str, Any]) -> None:
    digest = row["digest"]
    with catalogue.reading() as connection:
        tagged = tags_of(connection, [digest]).get(digest, ())
        check_seal(row, tagged)
        origins_of(connection, digest)
        check_labels(connection, row, tagged)
    with jax.enable_x64(True):  # kernels of 64-bit layers are checked whatever the mode is
        library.read(row)


def _is_there(catalogue: Catalogue, row: Mapping[str, Any]) -> bool:
    """Whether the row is still as it was read."""
    with catalogue.reading() as connection:
        query = sa.select(kernels.c.updated).where(kernels.c.digest == row["digest"])
        return connection.execute(query).scalar() == row["updated"]


def _rows(catalogue: Catalogue) -> Iterator[Mapping[str, Any]]:
    """Every row, page after page, so that nobody waits for the whole of it."""
    last = ""
    while True:
        query = sa.select(kernels).where(kernels.c.digest > last).order_by(kernels.c.digest).limit(_PAGE)
        with catalogue.reading() as connection:
            page = [dict(row) for row in connection.execute(query).mappings()]
        if not page:
            return
        yield from page
        last = page[-1]["digest"]


def _unnamed(catalogue: Catalogue, blobs: Blobs, going: set[str] | frozenset[str] = frozenset()) -> list[Object]:
    """The objects that no row names but those that are going; listed before the rows are, which are named last."""
    objects = list(blobs.all())
    with catalogue.reading() as connection:
        named = set(connection.execute(sa.select(kernels.c.blob)).scalars()) - going
    return [one for one in objects if one.digest not in named]


def _retired(catalogue: Catalogue, before: datetime) -> list[Mapping[str, Any]]:
    with catalogue.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(kernels).where(*_old(before))).mappings()]


def _old(before: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return kernels.c.lifecycle == "retired", kernels.c.retired <= before


def _forgotten(catalogue: Catalogue, row: Mapping[str, Any], before: datetime) -> bool:
    """Removes a row if it is still to go."""
    with catalogue.writing(alone=True) as connection:
        query = sa.delete(kernels).where(kernels.c.digest == row["digest"], *_old(before))
        return connection.execute(query).rowcount == 1


def _removed(catalogue: Catalogue, blobs: Blobs, one: Object, before: datetime) -> bool:
    """Removes an object if nobody names it or has written it again, in a transaction during which nobody can."""
    with catalogue.writing(alone=True) as connection:
        named = connection.execute(sa.select(kernels.c.digest).where(kernels.c.blob == one.digest).limit(1)).first()
        found = blobs.at(one.path)
        if named is not None or found is None or found.modified > before:
            return False
        blobs.delete(one.path)
        return True
