"""What is looked for in a catalogue, as statements that its indices serve."""

from __future__ import annotations

from collections.abc import Mapping
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
) -> sa.Select[Any]:
    """The statement that `Library.find` asks.

    Raises:
        ArgumentError: No such order or stage, or a limit out of its range.
    """
    if order_by not in ORDERS:
        raise ArgumentError(f"entries are ordered by {', '.join(ORDERS)}, not by {order_by!r:.80}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST:
        raise ArgumentError(f"limit is a whole number from 1 to {_MOST}, not {limit!r:.80}")
    column, descending = ORDERS[order_by]
    ways = (column.desc(), kernels.c.digest.desc()) if descending else (column, kernels.c.digest)
    query = sa.select(kernels).order_by(*ways).limit(limit)
    stage = kernels.c.lifecycle
    conditions = [
        *(kernels.c[name] == equal[name] for name in _EQUAL if equal.get(name) is not None),
        *(_has(attributes, *_valued(name, value)) for name, value in (geometry or {}).items()),
        stage != "retired" if lifecycle is None else stage == checked_lifecycle(lifecycle),
    ]
    if tag is not None:
        conditions.append(_has(tags, tags.c.tag == checked_tags([tag])[0]))
    if run is not None:
        conditions.append(_has(origins, origins.c.run == run))
    if min_gain is not None:
        conditions.append(kernels.c.rank >= float(min_gain))
    if max_parameters is not None:
        conditions.append(kernels.c.parameters <= max_parameters)
    return query.where(*conditions)


def _valued(name: str, value: Any) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return attributes.c.name == name, attributes.c.value == canonical(value)


def _has(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return kernels.c.digest.in_(sa.select(table.c.digest).where(*conditions))


def beginning(prefix: str) -> sa.Select[Any]:
    """The digests that begin so, at most two."""
    query = sa.select(kernels.c.digest).where(kernels.c.digest >= prefix, kernels.c.digest < prefix + "g")
    return query.order_by(kernels.c.digest).limit(2)
