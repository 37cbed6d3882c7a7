"""Real servers on loopback: `postgres`, `redis` and `s3`, each a context manager that yields a `Server`.

They start on free ports with data and log below the folder they are given, ask for passwords, and end with the
context: also when the tests are killed. `server.section` is what `EsperConfig` is told.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from esper.configs import DatabaseConfig, RedisConfig
from services.certificates import Certificates, make_certificates
from services.process import Server, account, free_port, unprivileged

PASSWORD = "k3rnel p@ss/w:rd"  # what a URL has to quote
ADMIN_PASSWORD = "only for the admin"
BUCKET = "esper-artifacts"


def missing() -> list[str]:
    """What has to be installed before these servers can start."""
    found = {name: shutil.which(name) for name in ("redis-server", "faketime")} | {"postgresql": _postgres_binaries()}
    return [name for name, place in found.items() if not place]


@contextmanager
def postgres(folder: Path, tls: bool = False) -> Iterator[Server]:
    """PostgreSQL with SCRAM passwords; role `urza` owns the database `urza_db`, `admin` may do anything."""
    binaries, port, log = _postgres_binaries(), free_port(), _log(folder, "postgres")
    assert binaries is not None, "PostgreSQL is missing; run tests/services/install.sh"
    with _reachable(folder) as home:
        data = home / "data"
        _initialise(binaries, home, data, _certificates(folder, tls))
        common = {"host": "127.0.0.1", "port": port}
        admin = {**common, "database": "postgres", "username": "admin", "password": ADMIN_PASSWORD}
        section = {**common, "database": "urza_db", "username": "urza", "password": PASSWORD}
        if tls:
            secure = {"ssl_mode": "verify-full", "ssl_root_cert": str(_certificates(folder, tls).ca)}
            admin, section = admin | secure, section | secure
        command = [*unprivileged(), str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
        server = Server("postgres", command, port, log, section, lambda: _admin_answers(admin), admin=admin, data=data)
        with _running(server):
            _run_sql(
                admin,
                f"CREATE ROLE urza LOGIN PASSWORD '{PASSWORD}'",
                "CREATE DATABASE urza_db OWNER urza",
            )
            yield server


@contextmanager
def redis(folder: Path, tls: bool = False) -> Iterator[Server]:
    """Redis with a password that writes every change to the disk before it answers."""
    port, log, data = free_port(), _log(folder, "redis"), folder / "redis"
    data.mkdir(parents=True, exist_ok=True)
    lines = [
        "bind 127.0.0.1",
        f"port {0 if tls else port}",
        f'requirepass "{PASSWORD}"',
        f'dir "{data}"',
        "appendonly yes",
        "appendfsync always",
        'save ""',
    ]
    section = {"host": "127.0.0.1", "port": port, "password": PASSWORD}
    if tls:
        files = _certificates(folder, tls)
        lines += [
            f"tls-port {port}",
            f'tls-cert-file "{files.server}"',
            f'tls-key-file "{files.server_key}"',
            f'tls-ca-cert-file "{files.ca}"',
            "tls-auth-clients optional",
        ]
        section |= {"tls": True, "ca_file": str(files.ca)}
    settings = data / "redis.conf"  # not on the command line, where every process can read the password
    settings.write_text("\n".join(lines) + "\n")
    server = Server(
        "redis", ["redis-server", str(settings)], port, log, section, lambda: _redis_answers(section), data=data
    )
    with _running(server):
        yield server


@contextmanager
def s3(folder: Path, flavour: Literal["nanio", "moto"] = "nanio", tls: bool = False) -> Iterator[Server]:
    """An S3-compatible server with a bucket.

    `nanio` checks signatures and keeps objects on the disk; `moto` understands conditional puts, checks no
    signatures and forgets everything when it ends.
    """
    port, log, data = free_port(), _log(folder, "s3"), folder / "s3"
    data.mkdir(parents=True, exist_ok=True)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    section = {"endpoint_url": url, "access_key": "esper", "secret_key": PASSWORD, "bucket_name": BUCKET}
    files = _certificates(folder, tls)
    if files is not None:
        section |= {"ca_file": str(files.ca)}
    environment = {"NANIO_ACCESS_KEY": "esper", "NANIO_SECRET_KEY": PASSWORD, "NANIO_DATA_DIR": str(data)}
    if flavour == "nanio":
        (data / BUCKET).mkdir(exist_ok=True)  # its buckets are folders
        command = [sys.executable, "-m", "uvicorn", "--factory", "nanio.app:build_app", "--host", "127.0.0.1"]
        command += ["--port", str(port)]
        command += ["--ssl-certfile", str(files.server), "--ssl-keyfile", str(files.server_key)] if files else []
    else:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        command += ["-c", str(files.server), "-k", str(files.server_key)] if files else []
    server = Server(
        f"s3 ({flavour})",
        command,
        port,
        log,
        section,
        lambda: _http_answers(url, files),
        environment,
        prepare=(lambda: _make_bucket(url, files)) if flavour == "moto" else None,
        data=data if flavour == "nanio" else None,
    )
    with _running(server):
        yield server


@contextmanager
def _running(server: Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.kill()


@contextmanager
def _reachable(folder: Path) -> Iterator[Path]:
    """A folder PostgreSQL's account can enter: in `folder` if it can, and else one of its own that is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    own = os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.resolve().parents))
    home = Path(tempfile.mkdtemp(prefix="esper-postgres-")) if own else folder / "postgres"
    home.mkdir(exist_ok=True)
    try:
        if os.geteuid() == 0:
            shutil.chown(home, account())
        yield home
    finally:
        if own:
            shutil.rmtree(home)


def _initialise(binaries: Path, home: Path, data: Path, files: Certificates | None) -> None:
    password = home / "password"
    password.write_text(ADMIN_PASSWORD)
    password.chmod(0o600)
    _give(password)
    command = [*unprivileged(), str(binaries / "initdb"), "-D", str(data), "-U", "admin", "-A", "scram-sha-256"]
    options = ["--pwfile", str(password), "--locale=C", "--encoding=UTF8", "--no-sync"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    password.unlink()
    # The tests kill the server and never the machine: what it wrote is in the page cache.
    lines = ["listen_addresses = '127.0.0.1'", "unix_socket_directories = ''", "max_connections = 100", "fsync = off"]
    if files is not None:
        for source in (files.server, files.server_key, files.ca):
            shutil.copy(source, data)
            (data / source.name).chmod(0o600)
            _give(data / source.name)
        lines += ["ssl = on", "ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.key'", "ssl_ca_file = 'ca.pem'"]
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    with (data / "postgresql.conf").open("a") as settings:
        settings.write("\n".join(lines) + "\n")


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, account())


@cache
def _postgres_binaries() -> Path | None:
    """The newest PostgreSQL that Debian's packages installed, or the one on the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda place: int(place.parts[4]))
    on_path = shutil.which("postgres")
    found = places[-1] if places else Path(on_path) if on_path else None
    return found.parent if found is not None else None


def _certificates(folder: Path, tls: bool) -> Certificates | None:
    """The authority of this folder, made once."""
    if not tls:
        return None
    place = folder / "certificates"
    return _known(place) or make_certificates(place)


def _known(place: Path) -> Certificates | None:
    names = ("ca.pem", "other.pem", "server.pem", "server.key", "client.pem", "client.key")
    files = Certificates(*(place / name for name in names))
    return files if all(path.exists() for path in asdict(files).values()) else None


def _log(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    log.touch()
    return log


def _connect(section: dict):
    import psycopg

    return psycopg.connect(**DatabaseConfig(**section).options(), autocommit=True)


def _run_sql(section: dict, *statements: str) -> None:
    with _connect(section) as connection:
        for statement in statements:
            connection.execute(statement)


def _admin_answers(section: dict) -> bool:
    import psycopg

    try:
        _run_sql(section, "SELECT 1")
        return True
    except psycopg.OperationalError:
        return False


def _redis_answers(section: dict) -> bool:
    import redis

    client = redis.Redis(**RedisConfig(**section).options())
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):  # BusyLoadingError, while it reads its data, is one
        return False
    finally:
        client.close()


def _context(files: Certificates | None):
    import ssl

    return ssl.create_default_context(cafile=str(files.ca)) if files is not None else None


def _http_answers(url: str, files: Certificates | None) -> bool:
    try:
        with urlopen(url, timeout=5, context=_context(files)):
            return True
    except HTTPError as error:  # refused for want of a signature: it answers
        error.close()
        return True
    except (URLError, ConnectionError, TimeoutError):
        return False


def _make_bucket(url: str, files: Certificates | None) -> None:
    with urlopen(Request(f"{url}/{BUCKET}", method="PUT"), timeout=5, context=_context(files)):
        return
