"""What is looked for in a catalogue, as statements that its indices serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from esper.errors import ArgumentError
from esper.library.entries import canonical, checked_lifecycle, checked_tags
from esper.library.schema import attributes, kernels, origins, tags

ORDERS: dict[str, tuple[Any, bool]] = {
    "gain": (kernels.c.rank, True),
    "created": (kernels.c.created, True),
    "updated": (kernels.c.updated, True),
    "parameters": (kernels.c.parameters, False),
}
"""What entries can be ordered by, and whether the largest comes first."""

FEW = 1_000
"""Rows that are looked up one by one rather than met on the way through an order."""

_MOST = 10_000
_EQUAL = ("kind", "blueprint", "dtype", "blend", "placement", "fits")


def finding(
    *,
    equal: Mapping[str, str | None],
    geometry: Mapping[str, Any] | None,
    tag: str | None,
    lifecycle: str | None,
    run: str | None,
    min_gain: float | None,
    max_parameters: int | None,
    order_by: str,
    limit: int,
    few: bool = False,
    recipes: Sequence[str] | None = None,
    carried: bool = False,
) -> sa.Select[Any]:
    """The statement that `Library.find` asks.

    `few`: whether `max_parameters` leaves so few that they are looked up, instead of being met on the way.
    `recipes`: the blueprints that do; None: all do. `carried`: whether those do too that come with Programs.

    Raises:
        ArgumentError: No such order or stage, or a limit out of its range.
    """
    if order_by not in ORDERS:
        raise ArgumentError(f"entries are ordered by {', '.join(ORDERS)}, not by {order_by!r:.80}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST:
        raise ArgumentError(f"limit is a whole number from 1 to {_MOST}, not {limit!r:.80}")
    stage = kernels.c.lifecycle
    conditions = [
        *(kernels.c[name] == equal[name] for name in _EQUAL if equal.get(name) is not None),
        stage != "retired" if lifecycle is None else stage == checked_lifecycle(lifecycle),
    ]
    if recipes is not None:
        known = kernels.c.blueprint.in_(recipes)
        conditions.append(sa.or_(known, kernels.c.carried) if carried else known)
    if run is not None:
        conditions.append(kernels.c.digest.in_(sa.select(origins.c.digest).where(origins.c.run == run)))
    if min_gain is not None:
        conditions.append(kernels.c.rank >= float(min_gain))
    if max_parameters is not None:
        own = kernels.c.digest.in_(_small(max_parameters)) if few else kernels.c.parameters <= max_parameters
        conditions.append(own)
    return _ordered(order_by, _named(geometry, tag)).where(*conditions).limit(limit)


def _named(geometry: Mapping[str, Any] | None, tag: str | None) -> list[tuple[Any, list[sa.ColumnElement[bool]]]]:
    """Tables that have rows for kernels of that tag and geometry, each under a name of its own, and which rows."""
    found: list[tuple[Any, list[sa.ColumnElement[bool]]]] = []
    if tag is not None:
        found.append((tags, [tags.c.tag == checked_tags([tag])[0]]))
    for number, (name, value) in enumerate((geometry or {}).items()):
        table = attributes.alias(f"attribute{number}")
        found.append((table, [table.c.name == name, table.c.value == canonical(value)]))
    return found


def _ordered(order_by: str, named: list[tuple[Any, list[sa.ColumnElement[bool]]]]) -> sa.Select[Any]:
    """The kernels that all of these have rows for, in order.

    By gain they are gone through in the order of the first table's own index, so that a name which many kernels have
    is as quick as one that few have.
    """
    column, descending = ORDERS[order_by]
    query, key = sa.select(kernels), kernels.c.digest
    if named and order_by == "gain":
        (table, conditions), *named = named
        query = query.join(table, table.c.digest == kernels.c.digest).where(*conditions)
        column, key = table.c.rank, table.c.digest
    for table, conditions in named:
        query = query.where(sa.exists().where(table.c.digest == kernels.c.digest, *conditions))
    return query.order_by(*((column.desc(), key.desc()) if descending else (column, key)))


def _small(max_parameters: int) -> sa.Select[Any]:
    own = kernels.alias("small")
    return sa.select(own.c.digest).where(own.c.parameters <= max_parameters)


def some_of(max_parameters: int) -> sa.Select[Any]:
    """How many kernels are so small, counted up to one more than are few."""
    counted = _small(max_parameters).limit(FEW + 1).subquery()
    return sa.select(sa.func.count()).select_from(counted)


def page(last: str, size: int = 1_000) -> sa.Select[Any]:
    """The next digests after one, in their order, but those of retired kernels."""
    query = sa.select(kernels.c.digest).where(kernels.c.digest > last, kernels.c.lifecycle != "retired")
    return query.order_by(kernels.c.digest).limit(size)


def beginning(prefix: str) -> sa.Select[Any]:
    """The digests that begin so, at most two."""
    query = sa.select(kernels.c.digest).where(kernels.c.digest >= prefix, kernels.c.digest < prefix + "g")
    return query.order_by(kernels.c.digest).limit(2)
