"""Oona: how events and messages travel on Redis Streams."""

from __future__ import annotations

from pydantic import Field

from esper.configs.base import ConfigModel


class OonaSettings(ConfigModel):
    """The `components.oona.config` section: names and bounds of the streams on Redis."""

    prefix: str = Field(default="esper", min_length=1, pattern=r"^[A-Za-z0-9_.:-]+$")
    """What every key begins with: deployments that share a Redis have different ones."""
    maxlen: int = Field(default=100_000, ge=1)
    """Entries of a stream that are kept, about; older ones go."""
    retention_days: float = Field(default=30.0, gt=0)
    """Days after its last event for which the stream of a run is kept."""
    group: str = Field(default="esper", min_length=1)
    """Consumer group of those who share the work on a stream."""
    block_ms: int = Field(default=1000, ge=1)
    """Milliseconds that a reader waits for new entries in one request."""
    claim_idle_ms: int = Field(default=60_000, ge=1)
    """Milliseconds after which an entry that a consumer took and never acknowledged goes to another."""
