"""The client that everything on Redis uses: made from the configuration, its failures explained without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esper.configs import OonaSettings, RedisConfig
from esper.configs.redaction import scrubbed, secrets_of
from esper.errors import MissingExtraError, TelemetryError

if TYPE_CHECKING:
    from redis import Redis

_ADVICE = (
    ("AuthenticationError", "correct redis.username and redis.password"),
    ("AuthenticationWrongNumberOfArgsError", "correct redis.username and redis.password"),
    ("AuthorizationError", "let the user have this command and the keys of components.oona.config.prefix"),
    ("NoPermissionError", "let the user have this command and the keys of components.oona.config.prefix"),
    ("OutOfMemoryError", "raise Redis's maxmemory, or lower components.oona.config.maxlen"),
    ("ReadOnlyError", "name the primary in redis.host: this is a replica"),
    ("BusyLoadingError", "wait until it has loaded its data"),
    (
        "TimeoutError",
        "see whether it is overloaded, and whether redis.tls is right; redis.timeout says how long it may take",
    ),
    ("ConnectionError", "start it, or correct redis.host, redis.port and redis.tls"),
)


def client(config: RedisConfig, *, retries: int = 0, **options: Any) -> Redis:
    """A client; it connects when it is first used, and repeats nothing by itself that it is not told to.

    Args:
        config: The `redis` section.
        retries: How often a command is repeated, at once, whose connection was gone.
        options: More of what `redis.Redis` takes.

    Raises:
        MissingExtraError: The package `redis` is not installed.
    """
    try:
        from redis import ConnectionError, Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise MissingExtraError("Redis", "redis", "redis") from error
    retry = Retry(NoBackoff(), retries, supported_errors=(ConnectionError,))
    return Redis(**{**config.options(), "retry": retry, **options})


def explained(config: RedisConfig, error: Exception) -> TelemetryError:
    """What went wrong with Redis, and what to do about it; never with the password."""
    return TelemetryError(explanation(config, error))


def explanation(config: RedisConfig, error: Exception) -> str:
    """The same as a line of text: servers and drivers may quote what they were given, the password too."""
    classes = [kind.__name__ for kind in type(error).__mro__]
    move = next((advice for name, advice in _ADVICE if name in classes), "see what Redis says in its log")
    text = scrubbed(" ".join(str(error).split()), secrets_of(config)) or type(error).__name__
    return f"Redis at {config.host}:{config.port}: {text.rstrip('.')}; {move}"


def run_index(oona: OonaSettings) -> str:
    """The sorted set of runs, by when they last had an event."""
    return f"{oona.prefix}:runs"


def event_stream(oona: OonaSettings, run_id: str) -> str:
    """The stream of a run's events."""
    return f"{oona.prefix}:events:{run_id}"
