"""The bus of a run as the configuration describes it."""

from __future__ import annotations

from pathlib import Path

from esper.configs import EsperConfig
from esper.telemetry.bus import Bus
from esper.telemetry.reading import HISTORY, read
from esper.telemetry.sinks.base import Sink
from esper.telemetry.sinks.jsonl import Jsonl


def bus_of(config: EsperConfig, folder: Path, run_id: str | None = None, *, resume: bool = False) -> Bus:
    """The bus for a run in a folder: its history, and whatever else is configured.

    Args:
        config: Its `redis` section, and `components.nissa` and `components.oona`.
        folder: Of the run; a history that is there is replaced.
        run_id: Which run it is; None: a new one.
        resume: Whether to go on after the history that is there instead, with its numbers.

    Raises:
        EventError: To go on after a history that is none.
        MissingExtraError: A package is not installed that something configured needs.
    """
    nissa = config.nissa_settings()
    sinks: list[Sink] = [Jsonl(folder / HISTORY, resume=resume, fsync=nissa.fsync)]
    if config.redis is not None and nissa.redis:
        from esper.telemetry.sinks.redis_streams import RedisStreams

        sinks.append(RedisStreams(config.redis, config.oona_settings()))
    if nissa.tensorboard:
        from esper.telemetry.sinks.tensorboard import TensorBoard

        sinks.append(TensorBoard(folder / "tensorboard"))
    if nissa.prometheus_port is not None:
        from esper.telemetry.sinks.prometheus import Prometheus

        before = read(folder) if resume and (folder / HISTORY).is_file() else []
        sinks.append(Prometheus(nissa.prometheus_port, nissa.prometheus_host, before))
    if nissa.otel_endpoint is not None:
        from esper.telemetry.sinks.otel import OpenTelemetry

        sinks.append(OpenTelemetry(nissa.otel_endpoint))
    return Bus(*sinks, run_id=run_id, bound=nissa.queue_bound, timeout=nissa.close_timeout)
