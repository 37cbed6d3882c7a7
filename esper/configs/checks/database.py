"""PostgreSQL: reached, logged in, encrypted, with the right to make the catalogue's tables or to use those there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from esper.configs.checks.findings import Finding, first_line
from esper.configs.redaction import redacted
from esper.configs.services import DatabaseConfig

_SUBJECT = "database"
_OLDEST = 120000
_SKEW = 30.0  # seconds between two clocks that are worth a word
VERSION_TABLE, REVISION = "esper_library_version", "0001"
"""Where the catalogue says which migration made it, and the one that this esper reads and writes."""
_LOCAL = ("localhost", "127.0.0.1", "::1")

# libpq gives no code for what fails while connecting: its text in English decides.
_REASONS = (
    (r"password authentication failed|no password supplied", "check database.username and database.password"),
    (r'database "[^"]*" does not exist', "create it: CREATE DATABASE {database} OWNER {username}"),
    (r'role "[^"]*" does not exist', "create it: CREATE ROLE {username} LOGIN PASSWORD '...'"),
    (r"no pg_hba.conf entry", "allow this host, database and role in pg_hba.conf, or use ssl_mode: verify-full"),
    (r"server does not support SSL", "switch TLS on in postgresql.conf (ssl = on), or use ssl_mode: prefer"),
    (r"root certificate file .* does not exist", "name the authority's file as database.ssl_root_cert"),
    (r"certificate verify failed", "database.ssl_root_cert is not the authority that signed the server's certificate"),
    (r"does not match host name", "database.host is not a name in the server's certificate: use one that is"),
    (r"could not translate host name|failed to resolve host", "check database.host"),
    (r"too many (clients|connections)", "raise max_connections, or close connections of other programs"),
    (r"starting up|shutting down|in recovery", "wait until the server is up"),
    (r"timeout expired|timed out", "check host, port and firewalls, or raise database.connect_timeout"),
    (r"Connection refused", "start the server, or check database.host and database.port"),
)


def examine(section: DatabaseConfig) -> Iterator[Finding]:
    """What PostgreSQL lets this role do; a table is made and taken back."""
    try:
        import psycopg
    except ImportError:
        yield Finding("failed", _SUBJECT, "psycopg is not installed", 'pip install "esper[postgres]"')
        return
    place = f"{redacted(section.host)}:{section.port}"
    try:
        connection = psycopg.connect(**section.options(), autocommit=True)
    except (psycopg.Error, OSError) as error:
        yield _refused(section, place, first_line(error))
        return
    with connection:
        version = connection.info.server_version
        login = f"{_role(section)}@{redacted(section.database)}"
        told = f"PostgreSQL {version // 10000}.{version % 10000} at {place}, {login}"
        yield Finding("ok" if version >= _OLDEST else "warning", _SUBJECT, told, _update(version))
        yield _encryption(section, connection)
        yield from _rights(section, connection, psycopg)
        yield from _clock(connection)


def _refused(section: DatabaseConfig, place: str, said: str) -> Finding:
    said = re.sub(r"^connection failed: (connection to server at .*? failed: )?", "", said)
    for pattern, move in _REASONS:
        if re.search(pattern, said):
            hint = move.format(database=redacted(section.database), username=_role(section))
            return Finding("failed", _SUBJECT, f"cannot connect to {place}", hint, said)
    move = "see whether the server runs, and what its log says"
    return Finding("failed", _SUBJECT, f"cannot connect to {place}", move, said)


def _role(section: DatabaseConfig) -> str:
    """The role's name, unless it came from a file."""
    return redacted(section.username)


def _update(version: int) -> str:
    return "" if version >= _OLDEST else "it is no longer maintained: update to a supported version"


def _encryption(section: DatabaseConfig, connection: Any) -> Finding:
    if not connection.pgconn.ssl_in_use:
        if section.host in _LOCAL or section.host.startswith("/"):  # a socket
            return Finding("ok", _SUBJECT, "not encrypted, on this machine")
        return Finding("warning", _SUBJECT, "not encrypted", "set database.ssl_mode: verify-full and ssl_root_cert")
    if section.ssl_mode not in ("verify-ca", "verify-full"):
        move = "set database.ssl_mode: verify-full and ssl_root_cert: somebody in between would not be noticed"
        return Finding("warning", _SUBJECT, "encrypted, but the server's certificate is not checked", move)
    return Finding("ok", _SUBJECT, "encrypted, and the server's certificate is checked")


def _rights(section: DatabaseConfig, connection: Any, psycopg: Any) -> Iterator[Finding]:
    schema = connection.execute("SELECT current_schema()").fetchone()[0]
    if schema is None:
        move = f"GRANT USAGE ON SCHEMA public TO {_role(section)}"
        yield Finding("failed", _SUBJECT, "the role sees no schema", move)
        return
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("CREATE TABLE esper_check_probe (x integer PRIMARY KEY)")
            connection.execute("INSERT INTO esper_check_probe VALUES (1)")
    except psycopg.errors.InsufficientPrivilege:
        yield _others_tables(section, schema, connection)
        return
    except psycopg.errors.ReadOnlySqlTransaction:
        yield Finding("failed", _SUBJECT, "the server only reads: it is a standby", "name the primary as database.host")
        return
    except psycopg.errors.DiskFull:
        yield Finding("failed", _SUBJECT, "the server's disk is full", "make room there")
        return
    yield Finding("ok", _SUBJECT, f"tables can be made in the schema {schema}")
    if connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()[0]:
        yield Finding("warning", _SUBJECT, "the role is a superuser", "use one that only owns its database")


def _others_tables(section: DatabaseConfig, schema: str, connection: Any) -> Finding:
    """What a role that may make no tables can do with the catalogue, if somebody has made it."""
    told = f"the role may not make tables in the schema {schema}"
    held = _one(
        connection, "SELECT array_agg(tablename ORDER BY tablename) FROM pg_tables WHERE schemaname = %s", schema
    )
    tables = [name for name in held or () if name.startswith("esper_")]
    if VERSION_TABLE not in tables:
        return Finding("failed", _SUBJECT, told, f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {_role(section)}")
    lacking = [
        f"{right} ON {name}"
        for name in tables
        for right in (("SELECT",) if name == VERSION_TABLE else ("SELECT", "INSERT", "UPDATE", "DELETE"))
        if not _one(connection, "SELECT has_table_privilege(%s, %s)", name, right)
    ]
    if lacking:
        move = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {_role(section)}"
        return Finding("failed", _SUBJECT, f"{told}, and lacks rights to those there: {', '.join(lacking)}", move)
    revision = _one(connection, f"SELECT version_num FROM {VERSION_TABLE}")
    if revision != REVISION:
        told = f"{told}, and those there are of schema {revision}, not {REVISION}"
        return Finding("failed", _SUBJECT, told, "as the role that owns them: esper library list")
    return Finding("ok", _SUBJECT, f"rows of the catalogue can be read and written; {told}: migrations are another's")


def _one(connection: Any, query: str, *values: str) -> Any:
    row = connection.execute(query, values).fetchone()
    return row[0] if row else None


def _clock(connection: Any) -> Iterator[Finding]:
    before = time.time()
    theirs = float(connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()[0])
    apart = theirs - (before + time.time()) / 2
    if abs(apart) > _SKEW:
        told = f"its clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} this machine's"
        yield Finding("warning", _SUBJECT, told, "synchronise both (NTP): times in the catalogue are compared")
