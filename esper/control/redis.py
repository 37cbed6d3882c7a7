"""A channel through Redis: a stream of bounded length for every inbox."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from esper.control.channel import KEPT
from esper.control.seal import MAX_BYTES
from esper.errors import ChannelError
from esper.telemetry.redis_client import client, explanation

if TYPE_CHECKING:
    from esper.configs import RedisConfig

_FIELD = b"m"
_UNREAD = 24 * 3600  # seconds that an inbox stays which nobody writes to any more
_PAUSES = (0.001, 0.02)  # seconds between looks into the inbox, the first and the longest

# Whatever anybody has put there, no more of it leaves the server than tells that it is too large. It is gone with that
# even if this end did not wait for it, so that no entry can stand in the way for good.
_CLAIM = """
local found = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not found then return false end
redis.call('XDEL', KEYS[1], found[1])
local fields = found[2]
for at = 1, #fields, 2 do
  if fields[at] == ARGV[1] then return string.sub(fields[at + 1], 1, tonumber(ARGV[2])) end
end
return ''
"""


class RedisChannel:
    """One end. Whoever deletes an entry has received it, so that several controllers share one inbox.

    Nothing is connected before it is used, and what is lost is connected anew: the server may come later, and go.

    Args:
        config: The server.
        inbox: Name of the own inbox.
        prefix: What the streams' names begin with.
        timeout: Seconds that the server may take for anything; None: as long as the configuration says.

    Raises:
        MissingExtraError: The package redis is not installed.
    """

    def __init__(self, config: RedisConfig, inbox: str, *, prefix: str = "esper", timeout: float | None = None) -> None:
        limits: dict[str, Any] = {}
        if timeout is not None:
            limits["socket_timeout"] = min(timeout, config.timeout)
            limits["socket_connect_timeout"] = min(timeout, config.connect_timeout)
        # One retry: after the server was restarted, the first command meets a connection that is gone.
        self._client: Any = client(config, retries=1, protocol=2, **limits)
        self._config = config
        self._prefix, self._own = f"{prefix}:control", f"{prefix}:control:{inbox}"

    def send(self, to: str, message: bytes) -> None:
        """Puts a message into an inbox; the oldest go where there are too many."""
        from redis import RedisError

        key = f"{self._prefix}:{to}"
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.xadd(key, {_FIELD: message}, maxlen=KEPT, approximate=True)
                pipeline.expire(key, _UNREAD)
                pipeline.execute()
        except (RedisError, OSError) as error:
            raise self._broken(error) from None

    def receive(self, timeout: float) -> bytes | None:
        """The oldest message of the own inbox."""
        from redis import RedisError

        deadline, (pause, longest) = time.monotonic() + timeout, _PAUSES
        while True:
            try:
                message = self._client.eval(_CLAIM, 1, self._own, _FIELD, MAX_BYTES + 1)
            except (RedisError, OSError) as error:
                raise self._broken(error) from None
            left = deadline - time.monotonic()
            if message is not None or left <= 0:
                return message
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _broken(self, error: Exception) -> ChannelError:
        return ChannelError(explanation(self._config, error))
