"""Events on Redis Streams, one stream a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from esper.configs import OonaSettings, RedisConfig
from esper.telemetry.events import Event
from esper.telemetry.redis_client import client, event_stream, explained, run_index
from esper.telemetry.sinks.base import Sink

_DAY = 86_400


class RedisStreams(Sink):
    """Adds every event to the stream of its run, as JSON in the field `event`; many in one transaction.

    Streams are bounded, and go some days after their last event. An answer that is lost makes events come twice, with
    the same `sequence`. The user needs XADD, EXPIRE, ZADD, ZREMRANGEBYSCORE, MULTI and EXEC on the prefix's keys.

    Args:
        config: The server.
        oona: Names and bounds of streams.

    Raises:
        MissingExtraError: The package `redis` is not installed.
    """

    name = "redis"

    def __init__(self, config: RedisConfig, oona: OonaSettings | None = None) -> None:
        self._config, self._oona = config, oona or OonaSettings()
        self._client = client(config)

    def write(self, events: Sequence[Event]) -> None:
        """Adds the events, all or none."""
        from redis.exceptions import RedisError

        oona, kept = self._oona, self._oona.retention_days * _DAY
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                for event in events:
                    entry: Any = {"event": event.line[:-1]}
                    pipeline.xadd(event_stream(oona, event.run_id), entry, maxlen=oona.maxlen, approximate=True)
                now = time.time()
                for run_id in {event.run_id for event in events}:
                    pipeline.expire(event_stream(oona, run_id), max(1, int(kept)))
                    pipeline.zadd(run_index(oona), {run_id: now})
                pipeline.zremrangebyscore(run_index(oona), "-inf", now - kept)
                pipeline.execute()
        except (RedisError, OSError) as error:
            self._client.connection_pool.disconnect()
            raise explained(self._config, error) from None

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()
