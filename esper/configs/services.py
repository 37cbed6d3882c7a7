"""What runs beside the main job: database, cache, object storage and the components that use them.

Secrets are plain `str`, since users format URLs from them, and kept out of `repr`. `options()` is what a client is
built from; paths of certificates are PEM files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from pydantic import Field

from esper.configs.base import ConfigModel, Place

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


class DatabaseConfig(ConfigModel):
    """The PostgreSQL database of the kernel catalogue.

    >>> DatabaseConfig(username="urza", password="p@ss").url()
    'postgresql://urza:p%40ss@localhost:5432/urza_db?sslmode=prefer'
    """

    host: str = Field(default="localhost", min_length=1)
    """Host name or address."""
    port: int = Field(default=5432, ge=1, le=65535)
    """TCP port."""
    database: str = Field(default="urza_db", min_length=1)
    """Name of the database."""
    username: str = Field(min_length=1)
    """Role to log in as."""
    password: str = Field(repr=False)
    """Password of the role; write `${DB_PASSWORD}` or `${file:PATH}` rather than the password itself."""
    ssl_mode: SslMode = "prefer"
    """libpq's `sslmode`; over a network: `verify-full`, which alone knows whom it talks to."""
    ssl_root_cert: Place | None = Field(default=None, min_length=1)
    """File of the authority that signed the server's certificate; null: libpq's own, `~/.postgresql/root.crt`."""
    ssl_cert: Place | None = Field(default=None, min_length=1)
    """File of the client's own certificate, where the server asks for one."""
    ssl_key: Place | None = Field(default=None, min_length=1)
    """File of the key of `ssl_cert`; only its owner may be able to read it."""
    connect_timeout: int = Field(default=10, ge=2)
    """Seconds to connect and log in."""

    def url(self) -> str:
        """The connection URL, **with the password**, every part percent-quoted."""
        login = _quoted(self.username) + (f":{_quoted(self.password)}" if self.password else "")
        query = urlencode({"sslmode": self.ssl_mode, **self._certificates()}, quote_via=quote, safe="")
        return f"postgresql://{login}@{_address(self.host, self.port)}/{_quoted(self.database)}?{query}"

    def options(self) -> dict[str, Any]:
        """What `psycopg.connect` is given, **with the password**; for SQLAlchemy these are its `connect_args`.

        There the engine is made of "postgresql+psycopg://" alone, so that no URL holds the password.
        """
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.database,
            "user": self.username,
            "password": self.password or None,
            "sslmode": self.ssl_mode,
            "connect_timeout": self.connect_timeout,
            **self._certificates(),
        }

    def _certificates(self) -> dict[str, str]:
        given = {"sslrootcert": self.ssl_root_cert, "sslcert": self.ssl_cert, "sslkey": self.ssl_key}
        return {name: path for name, path in given.items() if path is not None}


class RedisConfig(ConfigModel):
    """The Redis server that carries telemetry and seed state between processes.

    >>> RedisConfig(password="p@ss").url()
    'redis://:p%40ss@localhost:6379/0'
    """

    host: str = Field(default="localhost", min_length=1)
    """Host name or address."""
    port: int = Field(default=6379, ge=1, le=65535)
    """TCP port."""
    database: int = Field(default=0, ge=0)
    """Number of the logical database."""
    username: str | None = Field(default=None, min_length=1)
    """User of the server's access list (ACL); null: its default user."""
    password: str | None = Field(default=None, repr=False)
    """Password; null or empty when the server asks for none."""
    tls: bool = False
    """Whether the connection is encrypted and the server's certificate is checked."""
    ca_file: Place | None = Field(default=None, min_length=1)
    """File of the authority that signed the server's certificate; null: those of the system."""
    cert_file: Place | None = Field(default=None, min_length=1)
    """File of the client's own certificate, where the server asks for one."""
    key_file: Place | None = Field(default=None, min_length=1)
    """File of the key of `cert_file`."""
    connect_timeout: float = Field(default=5.0, gt=0)
    """Seconds to connect."""
    timeout: float = Field(default=5.0, gt=0)
    """Seconds an answer may take."""

    def url(self) -> str:
        """The connection URL, **with the password**, percent-quoted; it says nothing of certificates."""
        secret = f":{_quoted(self.password)}" if self.password else ""
        login = f"{_quoted(self.username or '')}{secret}@" if self.username or secret else ""
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{login}{_address(self.host, self.port)}/{self.database}"

    def options(self) -> dict[str, Any]:
        """What `redis.Redis` is given, **with the password**."""
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "db": self.database,
            "username": self.username,
            "password": self.password or None,
            "socket_connect_timeout": self.connect_timeout,
            "socket_timeout": self.timeout,
        }
        if self.tls:
            options |= {
                "ssl": True,
                "ssl_ca_certs": self.ca_file,
                "ssl_certfile": self.cert_file,
                "ssl_keyfile": self.key_file,
            }
        return options


class StorageConfig(ConfigModel):
    """The S3-compatible object store that holds kernel artifacts."""

    endpoint_url: str = Field(default="http://localhost:9000", pattern=r"^https?://[^/]")
    """URL of the S3 API."""
    access_key: str = Field(repr=False)
    """Access key id; write `${S3_ACCESS_KEY}` or `${file:PATH}` rather than the key itself."""
    secret_key: str = Field(repr=False)
    """Secret access key; write `${S3_SECRET_KEY}` or `${file:PATH}` rather than the key itself."""
    bucket_name: str = Field(default="esper-artifacts", min_length=1)
    """Bucket for artifacts."""
    region: str = Field(default="us-east-1", min_length=1)
    """Region of the bucket."""
    session_token: str | None = Field(default=None, repr=False)
    """Token that comes with temporary keys."""
    ca_file: Place | None = Field(default=None, min_length=1)
    """File of the authority that signed the server's certificate, trusted besides those of the system."""
    connect_timeout: float = Field(default=5.0, gt=0)
    """Seconds to connect."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds a request may take."""

    def options(self) -> dict[str, Any]:
        """What `obstore.store.S3Store` is given, **with the keys**; plain HTTP is allowed where the URL says so.

        Raises:
            OSError: `ca_file` cannot be read.
        """
        client: dict[str, Any] = {
            "allow_http": self.endpoint_url.startswith("http://"),
            "connect_timeout": f"{self.connect_timeout * 1000:.0f}ms",
            "timeout": f"{self.timeout * 1000:.0f}ms",
        }
        if self.ca_file is not None:
            client["root_certificate"] = Path(self.ca_file).read_bytes()
        options: dict[str, Any] = {
            "bucket": self.bucket_name,
            "endpoint": self.endpoint_url,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "region": self.region,
            "client_options": client,
        }
        return options | ({"session_token": self.session_token} if self.session_token else {})


class ComponentConfig(ConfigModel):
    """One component of a deployment, such as `tamiyo` or `urza`."""

    enabled: bool = True
    """Whether the component takes part."""
    replicas: int = Field(default=1, ge=0)
    """How many processes run it."""
    resources: dict[str, Any] = Field(default={})
    """What each replica is given, for example `{cpu: 2, memory: 4Gi}`."""
    config: dict[str, Any] = Field(default={})
    """The component's own settings."""


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{_quoted(host)}:{port}"
