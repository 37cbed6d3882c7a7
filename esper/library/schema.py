"""The catalogue's tables, one schema for SQLite and PostgreSQL; `migrations/` makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

HEAD = "0001"
"""The newest migration, which this version of esper reads and writes."""
VERSION_TABLE = "esper_library_version"


class UtcTime(TypeDecorator[datetime]):
    """A moment, UTC on both sides; SQLite keeps no time zone of its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """To UTC; a time without a zone is a mistake."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value}")
        return value and value.astimezone(UTC)

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        """As it is decoded; what is no time at all, which nobody here wrote, is None: the row's seal shows it."""
        decode: Any = super().result_processor(dialect, coltype)

        def decoded(value: Any) -> datetime | None:
            try:
                return decode(value)
            except (TypeError, ValueError):
                return None

        return decoded

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """In UTC."""
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


metadata = MetaData()

kernels = Table(
    "esper_kernels",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("blueprint", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("blend", Text, nullable=False),
    Column("placement", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("fits", String(64), nullable=False),  # names kind, attributes and dtype of the layer together
    Column("dtype", Text, nullable=False),
    Column("shapes", Text, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("flops", BigInteger),
    Column("gain_mean", Float(53)),
    Column("gain_stderr", Float(53)),
    Column("gain_n", BigInteger),
    Column("gain_time", UtcTime),  # when the library was told of it: a gain that it is told of later takes its place
    Column("rank", Float(53), nullable=False),  # the gain; what was not measured comes last in every database
    Column("lifecycle", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("retired", UtcTime),
    Column("labels", BigInteger, nullable=False),  # the bits of what it is found by besides these columns
    Column("carried", Boolean, nullable=False),
    Column("programs", String(64), nullable=False),  # names what is carried; empty: nothing is
    Column("blob", String(64), nullable=False),
    Column("blob_bytes", BigInteger, nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("updated", UtcTime, nullable=False),
    Column("checksum", String(64), nullable=False),
)

tags = Table(
    "esper_kernel_tags",
    metadata,
    Column("tag", String(100), primary_key=True),
    Column("digest", String(64), ForeignKey(kernels.c.digest, ondelete="CASCADE"), primary_key=True),
)

attributes = Table(
    "esper_kernel_attributes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("digest", String(64), ForeignKey(kernels.c.digest, ondelete="CASCADE"), primary_key=True),
)

origins = Table(
    "esper_kernel_origins",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), ForeignKey(kernels.c.digest, ondelete="CASCADE"), primary_key=True),
    Column("run", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("time", UtcTime, nullable=False),
    Column("checksum", String(64), nullable=False),
)

identity = Table("esper_library", metadata, Column("id", String(32), primary_key=True))
"""One row: what names this catalogue among those that keep their objects in one place."""

# Kernels are gone through in an order with all beside it that decides whether they are wanted: those that are not cost
# no look at their rows.
ORDERED = ("rank", "created", "updated", "parameters")
DECIDING = ("kind", "blueprint", "dtype", "blend", "placement", "lifecycle", "rank", "parameters", "labels", "carried")
# What few kernels have is looked up instead.
NAMED = ("fits", "kind", "blueprint", "dtype", "lifecycle")


def _walked(order: str) -> Index:
    names = dict.fromkeys((order, "digest", *DECIDING))
    return Index(f"ix_esper_kernels_{order}", *(kernels.c[name] for name in names))


INDICES = (
    *map(_walked, ORDERED),
    *(Index(f"ix_esper_kernels_{name}", kernels.c[name], kernels.c.digest) for name in NAMED),
    Index("ix_esper_kernels_blob", kernels.c.blob),
    Index("ix_esper_kernel_tags_digest", tags.c.digest),
    Index("ix_esper_kernel_attributes_digest", attributes.c.digest),
    Index("ix_esper_kernel_origins_digest", origins.c.digest),
    Index("ix_esper_kernel_origins_run", origins.c.run, origins.c.digest),
)
