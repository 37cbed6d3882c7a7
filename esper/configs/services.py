"""What runs beside the main job: database, cache, object storage and the components that use them.

Secrets are plain `str`, since users format URLs from them, and kept out of `repr`.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field

from esper.configs.base import ConfigModel

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
    """Password of the role; write `${DB_PASSWORD}` rather than the password itself."""
    ssl_mode: SslMode = "prefer"
    """libpq's `sslmode`."""

    def url(self) -> str:
        """The connection URL, **with the password**, every part percent-quoted."""
        login = _quoted(self.username) + (f":{_quoted(self.password)}" if self.password else "")
        return f"postgresql://{login}@{_address(self.host, self.port)}/{_quoted(self.database)}?sslmode={self.ssl_mode}"


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
    password: str | None = Field(default=None, repr=False)
    """Password; null or empty when the server asks for none."""

    def url(self) -> str:
        """The connection URL, **with the password**, percent-quoted."""
        login = f":{_quoted(self.password)}@" if self.password else ""
        return f"redis://{login}{_address(self.host, self.port)}/{self.database}"


class StorageConfig(ConfigModel):
    """The S3-compatible object store that holds kernel artifacts."""

    endpoint_url: str = Field(default="http://localhost:9000", pattern=r"^https?://[^/]")
    """URL of the S3 API."""
    access_key: str = Field(repr=False)
    """Access key id; write `${S3_ACCESS_KEY}` rather than the key itself."""
    secret_key: str = Field(repr=False)
    """Secret access key; write `${S3_SECRET_KEY}` rather than the key itself."""
    bucket_name: str = Field(default="esper-artifacts", min_length=1)
    """Bucket for artifacts."""
    region: str = Field(default="us-east-1", min_length=1)
    """Region of the bucket."""


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
