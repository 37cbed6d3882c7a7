"""Events on Redis Streams, one stream a run."""

from __future__ import annotations

from collections.abc import Sequence

from esper.configs import OonaSettings, RedisConfig
from esper.telemetry.redis_client import client, event_stream, explained, run_index
from esper.telemetry.sinks.base import LineSink

_DAY = 86_400

# One command for many events, as the lines of one text: a pipeline of XADDs takes ten times as long to write and to
# read, in the process that trains. A script runs whole or not at all.
# The clock that says which runs are long over is the server's, which all of them share.
_ADD = """
for line in string.gmatch(ARGV[4], '[^\\n]+') do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'event', line)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[2], now, ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[2]))
"""


class RedisStreams(LineSink):
    """Adds every event to the stream of its run, as JSON in the field `event`; many in one go, all or none.

    Streams are bounded, and go some days after their last event. An answer that is lost makes events come twice, with
    the same `sequence`. The user needs EVAL, XADD, EXPIRE, TIME, ZADD and ZREMRANGEBYSCORE on the prefix's keys.

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

    def write_lines(self, run_id: str, lines: Sequence[bytes]) -> None:
        """Adds them."""
        from redis.exceptions import RedisError

        oona, kept = self._oona, max(1, int(self._oona.retention_days * _DAY))
        keys = event_stream(oona, run_id), run_index(oona)
        try:
            self._client.eval(_ADD, 2, *keys, str(oona.maxlen), str(kept), run_id, b"".join(lines))  # type: ignore
        except (RedisError, OSError) as error:
            self._client.connection_pool.disconnect()
            raise explained(self._config, error) from None

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()
