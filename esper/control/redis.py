"""A channel through Redis: a stream of bounded length for every inbox."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from esper.control.channel import KEPT
from esper.errors import ChannelError, MissingExtraError

if TYPE_CHECKING:
    from esper.configs import RedisConfig

_FIELD = b"m"
_UNREAD = 24 * 3600  # seconds that an inbox stays which nobody writes to any more


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
        self._place = f"redis at {config.host}:{config.port}"
        self._prefix, self._own = f"{prefix}:control", f"{prefix}:control:{inbox}"
        self._longest = options["socket_timeout"] / 2  # that a command may block; the socket must outlast it

    def send(self, to: str, message: bytes) -> None:
        """Puts a message into an inbox; the oldest go where there are too many."""
        key = f"{self._prefix}:{to}"
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.xadd(key, {_FIELD: message}, maxlen=KEPT, approximate=True)
                pipeline.expire(key, _UNREAD)
                pipeline.execute()
        except self._errors as error:
            raise self._broken(error) from error

    def receive(self, timeout: float) -> bytes | None:
        """The oldest message of the own inbox."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                message = self._claimed(min(left, self._longest))
            except self._errors as error:
                raise self._broken(error) from error
            if message is not None or time.monotonic() >= deadline:
                return message

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _claimed(self, timeout: float) -> bytes | None:
        block = int(1000 * timeout) or None  # 0 would block for ever
        for _, entries in self._client.xread({self._own: "0-0"}, count=1, block=block) or ():
            for name, fields in entries:
                if self._client.xdel(self._own, name):
                    return fields.get(_FIELD, b"")
        return None

    def _broken(self, error: Exception) -> ChannelError:
        return ChannelError(f"{self._place} does not work ({type(error).__name__}): {error}")
