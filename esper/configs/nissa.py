"""Nissa: which places the events of a run go to."""

from __future__ import annotations

from pydantic import Field

from esper.configs.base import ConfigModel


class NissaSettings(ConfigModel):
    """The `components.nissa.config` section: where events go, besides `history.jsonl` in the folder of the run."""

    redis: bool = True
    """Whether they go to Redis Streams, where there is a `redis` section."""
    tensorboard: bool = False
    """Whether they go to TensorBoard, as files in the folder `tensorboard` of the run."""
    prometheus_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which Prometheus may ask for figures, 0 for any that is free; null: none."""
    prometheus_host: str = Field(default="127.0.0.1", min_length=1)
    """Address it listens on; the figures are for everyone who reaches it."""
    otel_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/]")
    """URL of an OpenTelemetry collector that takes OTLP over HTTP, such as http://localhost:4318; null: none."""
    queue_bound: int = Field(default=10_000, ge=1)
    """Events that may wait for each of these places; then the oldest are dropped, and counted."""
    close_timeout: float = Field(default=5.0, ge=0)
    """Seconds that a run waits at its end for places that are slow or away."""
    fsync: bool = False
    """Whether `history.jsonl` is forced to the disk at every write, rather than at the end of the run."""
