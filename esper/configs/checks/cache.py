"""Redis: reached, let in, new enough for streams, with the right to use them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from esper.configs.checks.findings import Finding, first_line
from esper.configs.redaction import redacted
from esper.configs.services import RedisConfig

_SUBJECT = "redis"
_OLDEST = (6, 2)  # XAUTOCLAIM, which takes over what a reader that died has left
_LOCAL = ("localhost", "127.0.0.1", "::1")
ACL = (
    "resetkeys ~{prefix}:* resetchannels -@all "
    "+@connection +@stream +@sortedset +@transaction +@keyspace +eval +time -@dangerous +info"
)
"""What the user of esper needs in Redis's access list, as `ACL SETUSER` is told."""


def examine(section: RedisConfig, prefix: str = "esper") -> Iterator[Finding]:
    """What Redis lets this user do; a stream and an index are made, used, and removed."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        yield Finding("failed", _SUBJECT, "redis is not installed", 'pip install "esper[redis]"')
        return
    client = redis.Redis(**section.options(), retry=Retry(NoBackoff(), 0))
    try:
        yield from _examined(section, client, redis, prefix)
    finally:
        client.close()


def _examined(section: RedisConfig, client: Any, redis: Any, prefix: str) -> Iterator[Finding]:
    place = f"{redacted(section.host)}:{section.port}"
    try:
        client.ping()
    except (redis.RedisError, OSError) as error:
        yield _refused(section, place, error, redis)
        return
    yield from _server(place, client, redis)
    if section.tls:
        yield Finding("ok", _SUBJECT, "encrypted, and the server's certificate is checked")
    elif section.host not in _LOCAL:
        yield Finding("warning", _SUBJECT, "not encrypted", "set redis.tls: true and ca_file")
    if not section.password:
        yield Finding("warning", _SUBJECT, "it asks for no password", "set requirepass or an ACL, and redis.password")
    yield from _streams(section, client, redis, prefix)


def _refused(section: RedisConfig, place: str, error: BaseException, redis: Any) -> Finding:
    said = first_line(error)
    login = f"the user {section.username!r}" if section.username else "the default user"
    match error:
        case redis.AuthenticationError():
            told, move = f"does not let {login} in", "check redis.username and redis.password"
        case redis.exceptions.NoPermissionError():
            told, move = f"does not allow {login} enough", f"let it do what esper needs: {_setuser(section)}"
        case redis.TimeoutError():
            told, move = "does not answer in time", "check host, port and firewalls, or raise redis.connect_timeout"
            move += "; is that its tls-port? A port without TLS waits for more" if section.tls else ""
        case redis.ResponseError() if "DB index" in said:
            told, move = f"has no database {section.database}", "set redis.database: 0"
        case _ if "certificate" in said.lower():
            told, move = "has a certificate that is not trusted", "name the authority that signed it as redis.ca_file"
        case _ if section.tls and "refused" not in said.lower() and "-2" not in said:
            told, move = "does not answer as TLS does", "is that its tls-port? If it has none: redis.tls: false"
        case _:
            move = "start the server, or check redis.host, redis.port, and redis.tls if that port speaks TLS"
            told = "cannot be reached"
    return Finding("failed", _SUBJECT, f"{place} {told}", move, said)


def _server(place: str, client: Any, redis: Any) -> Iterator[Finding]:
    try:
        info = client.info()
    except redis.exceptions.NoPermissionError:
        yield Finding("ok", _SUBJECT, f"reached at {place}; this user may not ask for its version")
        return
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    told = f"Redis {info['redis_version']} at {place}"
    if version < _OLDEST:
        yield Finding("failed", _SUBJECT, told, "update it: consumer groups need 6.2")
        return
    yield Finding("ok", _SUBJECT, told)
    if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
        told = f"full, it forgets keys ({info['maxmemory_policy']})"
        yield Finding("warning", _SUBJECT, told, "CONFIG SET maxmemory-policy noeviction: whole streams would go")
    if not info.get("aof_enabled"):
        yield Finding("warning", _SUBJECT, "what it acknowledged may be lost when it dies", "set appendonly yes")


def _streams(section: RedisConfig, client: Any, redis: Any, prefix: str) -> Iterator[Finding]:
    key, group = f"{prefix}:check:{secrets.token_hex(8)}", "check"
    try:
        client.xgroup_create(key, group, id="0", mkstream=True)
        try:
            client.xadd(key, {"x": "1"}, maxlen=10, approximate=True)
            ((_, messages),) = client.xreadgroup(group, "check", {key: ">"}, count=1)
            client.xack(key, group, messages[0][0])
            client.xautoclaim(key, group, "check", min_idle_time=0)
            client.eval("redis.call('TIME'); return redis.call('EXPIRE', KEYS[1], 60)", 1, key)
            client.zadd(f"{key}:runs", {"x": 1})
        finally:
            client.delete(key, f"{key}:runs")
    except redis.exceptions.NoPermissionError as error:
        move = f"allow it: {_setuser(section, prefix)}"
        yield Finding("failed", _SUBJECT, f"streams below {redacted(prefix)}: are not allowed", move, first_line(error))
    except redis.ReadOnlyError:
        yield Finding("failed", _SUBJECT, "the server only reads: it is a replica", "name the primary as redis.host")
    except redis.ResponseError as error:
        move = "make room: raise maxmemory, or lower the bounds of streams" if "OOM" in str(error) else "see its log"
        yield Finding("failed", _SUBJECT, "streams do not work", move, first_line(error))
    else:
        yield Finding("ok", _SUBJECT, f"streams and consumer groups work below {redacted(prefix)}:")


def _setuser(section: RedisConfig, prefix: str = "esper") -> str:
    return f"ACL SETUSER {redacted(section.username) or 'default'} {ACL.format(prefix=redacted(prefix))}"
