"""A channel through Redis: a stream of bounded length for every inbox."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from esper.control.channel import KEPT, too_large
from esper.control.seal import MAX_BYTES
from esper.errors import ChannelError
from esper.telemetry.redis_client import client, explanation

if TYPE_CHECKING:
    from esper.configs import RedisConfig

_FIELD = b"m"
_UNREAD = 24 * 3600  # seconds that a stream stays which nobody writes to any more
_LATE = 4  # questions without an answer whose answers are looked for all the same, to tell of them
_PAUSES = (0.001, 0.02)  # seconds between looks into the inbox, the first and the longest

# The oldest entry of the first stream that has one, or 1 where that is too large: whatever anybody has put there, no
# more of it leaves the server. It is gone with that even if this end did not wait for it, so that no entry can stand in
# the way for good. So is a stream without entries, with the highest id that it had, and what is no stream.
_CLAIM = """
for _, key in ipairs(KEYS) do
  local found = redis.pcall('XRANGE', key, '-', '+', 'COUNT', 1)
  if found.err and not string.find(found.err, 'WRONGTYPE') then return found end
  if found[1] then
    local id, fields = unpack(found[1])
    redis.call('XDEL', key, id)
    if redis.pcall('XLEN', key) == 0 then redis.pcall('DEL', key) end
    for at = 1, #fields, 2 do
      if fields[at] == ARGV[1] then
        if #fields[at + 1] > tonumber(ARGV[2]) then return 1 end
        return fields[at + 1]
      end
    end
    return ''
  end
  redis.pcall('DEL', key)
end
return false
"""


class RedisChannel:
    """One end. Whoever deletes an entry has received it, so that several controllers share one inbox.

    A message about something has a stream of its own, and no other is before it: what was there goes when it comes.

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
        self._asked: deque[str] = deque(maxlen=_LATE + 1)  # streams of the newest questions

    def send(self, to: str, message: bytes, about: str = "") -> None:
        """Puts a message into an inbox; the oldest go where there are too many."""
        from redis import RedisError

        key = f"{self._prefix}:{to}:{about}" if about else f"{self._prefix}:{to}"
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.xadd(key, {_FIELD: message}, maxlen=1 if about else KEPT, approximate=False)
                pipeline.expire(key, _UNREAD)
                pipeline.execute()
        except (RedisError, OSError) as error:
            raise self._broken(error) from None

    def receive(self, timeout: float, about: str = "") -> bytes | None:
        """The message about this, else the oldest of the own inbox."""
        keys = self._streams(about)
        deadline, (pause, longest) = time.monotonic() + timeout, _PAUSES
        while True:
            message = self._claimed(keys)
            left = deadline - time.monotonic()
            if message is not None or left <= 0:
                return message
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _streams(self, about: str) -> list[str]:
        """Where to look, in this order: the question's stream, the inbox, the streams of questions before."""
        own = f"{self._own}:{about}"
        if about and own not in self._asked:
            self._asked.appendleft(own)
        first = [own] if about else []
        return [*first, self._own, *(key for key in self._asked if key not in first)]

    def _claimed(self, keys: list[str]) -> bytes | None:
        from redis import RedisError

        try:
            message = self._client.eval(_CLAIM, len(keys), *keys, _FIELD, MAX_BYTES)
        except (RedisError, OSError) as error:
            raise self._broken(error) from None
        return too_large() if isinstance(message, int) else message

    def _broken(self, error: Exception) -> ChannelError:
        return ChannelError(explanation(self._config, error))
