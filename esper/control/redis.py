"""A channel through Redis: a stream of bounded length for every inbox."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from esper.configs.redaction import scrubbed, secrets_of
from esper.control.channel import KEPT
from esper.control.seal import MAX_BYTES
from esper.errors import ChannelError, MissingExtraError

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
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise MissingExtraError("a control channel through Redis", "redis", "redis") from error
        options = config.options()
        if timeout is not None:
            for name in ("socket_timeout", "socket_connect_timeout"):
                options[name] = min(timeout, options[name])
        # One retry: after the server was restarted, the first command meets a connection that is gone.
        retry = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        self._client: Any = redis.Redis(**options, retry=retry, protocol=2)
        self._errors = (redis.RedisError, OSError)
        self._secrets = secrets_of(config)
        self._place = f"redis at {config.host}:{config.port}"
        self._prefix, self._own = f"{prefix}:control", f"{prefix}:control:{inbox}"

    def send(self, to: str, message: bytes) -> None:
        """Puts a message into an inbox; the oldest go where there are too many."""
        key = f"{self._prefix}:{to}"
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.xadd(key, {_FIELD: message}, maxlen=KEPT, approximate=True)
                pipeline.expire(key, _UNREAD)
                pipeline.execute()
        except self._errors as error:
            raise self._broken(error) from None

    def receive(self, timeout: float) -> bytes | None:
        """The oldest message of the own inbox."""
        deadline, (pause, longest) = time.monotonic() + timeout, _PAUSES
        while True:
            try:
                message = self._client.eval(_CLAIM, 1, self._own, _FIELD, MAX_BYTES + 1)
            except self._errors as error:
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
        """What is wrong, in a line; servers and drivers may quote what they were given, the password too."""
        said = scrubbed(" ".join(str(error).split()), self._secrets)
        return ChannelError(f"{self._place} does not work ({type(error).__name__}): {said}")
