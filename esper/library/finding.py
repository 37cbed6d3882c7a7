"""Finding kernels: which way is taken through the catalogue, and which of what is met there is believed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from esper.errors import ArtifactError
from esper.library.catalogue import Catalogue
from esper.library.entries import Entry
from esper.library.queries import FEW, Wanted, counting, finding, lists
from esper.library.rows import check_geometry, check_told, entry, of_run, tags_of
from esper.library.schema import kernels

_LOG = logging.getLogger("esper.library")


def found(catalogue: Catalogue, wanted: Wanted) -> list[Entry]:
    """The entries that are wanted, in order; of what is met and not believed a warning is logged."""
    with catalogue.reading() as connection:
        return list(_believed(connection, wanted, _digests(connection, wanted)))


def _digests(connection: Connection, wanted: Wanted) -> list[str]:
    several = lists(wanted)
    counts = connection.execute(counting(several)).one() if several else ()
    shortest = min(zip(counts, several, strict=True), key=lambda counted: counted[0], default=(FEW + 1, None))
    few = shortest[1] if shortest[0] <= FEW else None
    return list(connection.execute(finding(wanted, few)).scalars())


def _believed(connection: Connection, wanted: Wanted, digests: list[str]) -> Iterator[Entry]:
    query = sa.select(kernels).where(kernels.c.digest.in_(digests))
    rows = {row["digest"]: dict(row) for row in connection.execute(query).mappings()} if digests else {}
    tagged = tags_of(connection, digests) if digests else {}
    told = set(digests) if wanted.run is None else of_run(connection, wanted.run, digests)
    for digest in digests:
        try:
            one = entry(rows[digest], tagged.get(digest, ()))
            check_geometry(one, wanted.geometry or {})
            check_told(digest, told)
            yield one
        except ArtifactError as error:
            _LOG.warning("not found, though it is there: %s", error)
