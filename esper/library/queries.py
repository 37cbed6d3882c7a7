"""What is looked for in a catalogue, as statements that its indices serve whatever is combined in them.

No statistics tell a database which conditions go together, so what it does is decided here: if few kernels are of one
thing that is asked for, these are looked up; else all are gone through in the order that is asked for, in an index that
has what decides beside it, until there are enough. SQLite is told so by `Unserved`; a server may know better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from esper.errors import ArgumentError
from esper.library.arguments import number, plain, text, whole
from esper.library.entries import canonical, checked_lifecycle, checked_tags
from esper.library.labels import Label, bits
from esper.library.schema import NAMED, attributes, kernels, origins, tags

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
_EQUAL = ("kind", "blueprint", "dtype", "blend", "placement")
_OWN = kernels.alias("own")


@dataclass(frozen=True)
class Wanted:
    """What `Library.find` is asked for; None: whatever it is.

    Attributes:
        equal: Columns, and what they are.
        fits: Names the layers that it fits.
        geometry: Some of the layer's attributes.
        tag: One of its tags.
        run: One of the runs that it came from.
        lifecycle: Its stage; None: any but "retired".
        min_gain: The least gain.
        max_parameters: The most parameters.
        recipes: The blueprints that do.
        carried: Whether those do too that come with Programs.
        order_by: One of `ORDERS`.
        limit: How many at most.

    Raises:
        ArgumentError: No such order, stage, tag or attribute, or what is no such text or number.
    """

    equal: Mapping[str, str | None]
    fits: str | None = None
    geometry: Mapping[str, Any] | None = None
    tag: str | None = None
    run: str | None = None
    lifecycle: str | None = None
    min_gain: float | None = None
    max_parameters: int | None = None
    recipes: Sequence[str] | None = None
    carried: bool = False
    order_by: str = "gain"
    limit: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.order_by, str) or self.order_by not in ORDERS:
            raise ArgumentError(f"entries are ordered by {', '.join(ORDERS)}, not by {self.order_by!r:.80}")
        if self.lifecycle is not None:
            checked_lifecycle(self.lifecycle)
        if self.tag is not None:
            checked_tags([self.tag])
        for name, value in {**self.equal, "run": self.run}.items():
            if value is not None:
                text(name, value)
        plainly = {"limit": whole("limit", self.limit, 1, _MOST), "geometry": _checked_geometry(self.geometry)}
        if self.min_gain is not None:
            plainly["min_gain"] = _checked_gain(self.min_gain)
        if self.max_parameters is not None:
            plainly["max_parameters"] = whole("max_parameters", self.max_parameters, 0)
        for name, value in plainly.items():
            object.__setattr__(self, name, value)

    @property
    def labels(self) -> dict[Label, sa.Select[Any]]:
        """What is asked for of what no column of its own says, and the digests of those that have it."""
        found: dict[Label, sa.Select[Any]] = {}
        if self.fits is not None:
            found["fits", self.fits] = sa.select(_OWN.c.digest).where(_OWN.c.fits == self.fits)
        if self.tag is not None:
            found["tag", self.tag] = sa.select(tags.c.digest).where(tags.c.tag == self.tag)
        if self.run is not None:
            found["run", self.run] = sa.select(origins.c.digest).where(origins.c.run == self.run)
        for name, value in (self.geometry or {}).items():
            text = canonical(value)
            query = sa.select(attributes.c.digest).where(attributes.c.name == name, attributes.c.value == text)
            found["attribute", name, text] = query
        return found

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that are to equal something."""
        named = {name: self.equal[name] for name in _EQUAL if self.equal.get(name) is not None}
        return named | ({} if self.lifecycle is None else {"lifecycle": self.lifecycle})


def _checked_geometry(geometry: Mapping[str, Any] | None) -> dict[str, Any]:
    if geometry is not None and not isinstance(geometry, Mapping):
        raise ArgumentError(f"attributes are values by name, not {geometry!r:.80}")
    named = (geometry or {}).items()
    return {text("the name of an attribute", name): plain(f"the attribute {name}", value) for name, value in named}


def _checked_gain(least: object) -> float:
    found = number("min_gain", least)
    if math.isnan(found):
        raise ArgumentError("min_gain is a number, not NaN: leave it out to find kernels of every gain")
    return found


class Unserved(FunctionElement[Any]):
    """A column that SQLite takes no index for, a server may: https://sqlite.org/optoverview.html on the unary "+"."""

    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(Unserved)
def _as_it_is(element: Any, compiler: Any, **more: Any) -> str:
    return compiler.process(element.clauses, **more)


@compiles(Unserved, "sqlite")
def _with_a_plus(element: Any, compiler: Any, **more: Any) -> str:
    return f"+{compiler.process(element.clauses, **more)}"


def lists(wanted: Wanted) -> list[sa.Select[Any]]:
    """For each thing that is asked for and has an index of its own: the digests of the kernels that are of it."""
    found = [_OWN.c[name] == value for name, value in wanted.columns.items() if name in NAMED]
    if wanted.min_gain is not None:
        found.append(_OWN.c.rank >= wanted.min_gain)
    if wanted.max_parameters is not None:
        found.append(_OWN.c.parameters <= wanted.max_parameters)
    return [*wanted.labels.values(), *(sa.select(_OWN.c.digest).where(condition) for condition in found)]


def counting(several: Sequence[sa.Select[Any]]) -> sa.Select[*tuple[Any, ...]]:
    """How long lists are, each counted up to one more than are few."""
    counts = (sa.select(sa.func.count()).select_from(one.limit(FEW + 1).subquery()) for one in several)
    return sa.select(*(count.scalar_subquery() for count in counts))


def finding(wanted: Wanted, few: sa.Select[Any] | None) -> sa.Select[Any]:
    """The digests of the kernels of which all is so, in order.

    Args:
        wanted: What is asked for.
        few: A short list that they are in; None: there is none, they are met in the order's own index.
    """
    column, descending = ORDERS[wanted.order_by]
    served = () if few is not None else (column.name, "digest")

    def own(name: str) -> sa.ColumnElement[Any]:
        return kernels.c[name] if name in served else Unserved(kernels.c[name])

    conditions = [own(name) == value for name, value in wanted.columns.items()]
    if wanted.lifecycle is None:
        conditions.append(own("lifecycle") != "retired")
    if wanted.recipes is not None:
        known = own("blueprint").in_(wanted.recipes)
        conditions.append(sa.or_(known, own("carried")) if wanted.carried else known)
    if wanted.min_gain is not None:
        conditions.append(own("rank") >= wanted.min_gain)
    if wanted.max_parameters is not None:
        conditions.append(own("parameters") <= wanted.max_parameters)
    if wanted.labels:
        mask = bits(wanted.labels)
        conditions.append(own("labels").bitwise_and(mask) == mask)
    if few is not None:
        conditions.append(kernels.c.digest.in_(few))
    conditions += (_has(one) for one in wanted.labels.values())
    order = (own(column.name), own("digest"))
    query = sa.select(kernels.c.digest).where(*conditions).limit(wanted.limit)
    return query.order_by(*(one.desc() if descending else one for one in order))


def _has(one: sa.Select[Any]) -> sa.ColumnElement[bool]:
    """Whether a kernel is in a list, looked up for each that gets so far."""
    (digest,) = one.selected_columns
    return one.where(digest == kernels.c.digest).correlate(kernels).exists()


def page(last: str, size: int = 1_000) -> sa.Select[Any]:
    """The next digests after one, in their order, but those of retired kernels."""
    query = sa.select(kernels.c.digest).where(kernels.c.digest > last, kernels.c.lifecycle != "retired")
    return query.order_by(kernels.c.digest).limit(size)


def beginning(prefix: str) -> sa.Select[Any]:
    """The digests that begin so, at most two."""
    query = sa.select(kernels.c.digest).where(kernels.c.digest >= prefix, kernels.c.digest < prefix + "g")
    return query.order_by(kernels.c.digest).limit(2)
