"""The library's contract on PostgreSQL and S3, and what becomes of it when these fail."""

import itertools

import psycopg
import pytest
from library.contract import *  # noqa: F403
from library.finding import *  # noqa: F403
from library.fixtures import *  # noqa: F403
from library.given import *  # noqa: F403
from library.killed import *  # noqa: F403
from library.places import artifact
from library.tampering import *  # noqa: F403

from esper.configs import DatabaseConfig, EsperConfig
from esper.errors import LibraryError
from esper.library import open_library
from esper.library.catalogue import _LOCK
from services.servers import PASSWORD, postgres, s3

_NUMBERS = itertools.count()


def configured(tmp_path, database, storage):
    return EsperConfig(
        name="test",
        database=database,
        storage=storage,
        components={"urza": {"config": {"folder": str(tmp_path / "here")}}},
    )


@pytest.fixture
def config(tmp_path, postgres_server, s3_server):
    """A database and a bucket of its own."""
    name = f"library{next(_NUMBERS)}"
    with psycopg.connect(**DatabaseConfig(**postgres_server.admin).options(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER urza")
    (s3_server.data / name).mkdir()
    storage = {**s3_server.section, "bucket_name": name}
    return configured(tmp_path, {**postgres_server.section, "database": name}, storage)


def test_wrong_credentials_are_one_message_without_them(tmp_path, postgres_server, s3_server):
    wrong = {**postgres_server.section, "password": "hunter2"}
    with pytest.raises(LibraryError, match=r"password authentication failed.*set database\.username") as raised:
        open_library(configured(tmp_path, wrong, s3_server.section))
    assert "hunter2" not in str(raised.value) + repr(raised.value)
    keys = {**s3_server.section, "secret_key": "hunter3"}
    with (
        open_library(configured(tmp_path, None, keys)) as library,
        pytest.raises(LibraryError, match=r"set storage\.access_key and storage\.secret_key") as raised,
    ):
        library.put(artifact(1))
    assert "hunter3" not in str(raised.value)
    with (
        open_library(configured(tmp_path, None, {**s3_server.section, "bucket_name": "none"})) as library,
        pytest.raises(LibraryError, match=r"storage\.bucket_name"),
    ):
        library.put(artifact(1))


def test_a_socket_that_is_not_there_is_no_damage(tmp_path, postgres_server):
    config = configured(tmp_path, {**postgres_server.section, "host": str(tmp_path)}, None)
    with pytest.raises(LibraryError, match=r"No such file or directory.*see whether the server runs") as raised:
        open_library(config)
    assert "damaged" not in str(raised.value)


def test_servers_that_die_are_said_and_nothing_is_lost(tmp_path):
    with postgres(tmp_path / "db") as database, s3(tmp_path / "s3") as storage:
        config = configured(tmp_path, database.section, storage.section)
        with open_library(config) as library:
            kept = library.put(artifact(1), tags=["a"])
            assert PASSWORD not in repr(library)
            for server in (storage, database):
                server.kill()
                with pytest.raises(LibraryError, match="can be reached from here") as raised:
                    library.put(artifact(2))
                assert PASSWORD not in str(raised.value)
                server.start()
            assert library.get(kept) == artifact(1)
            assert library.get(library.put(artifact(2))) == artifact(2)
            assert library.verify().problems == ()
        database.kill()
        with pytest.raises(LibraryError, match="see whether the server runs"):
            open_library(config)


def test_a_database_that_hangs_is_given_up_and_nothing_is_lost(tmp_path, monkeypatch):
    """Its machine answers for it, so that the network sees nothing wrong; or another session holds what is needed."""
    monkeypatch.setattr("esper.library.catalogue._PATIENCE", 1)
    with postgres(tmp_path / "db") as database:
        config = configured(tmp_path, {**database.section, "connect_timeout": 2}, None)
        with open_library(config) as library:
            kept = library.put(artifact(1))
            database.pause()
            for ask in (lambda: library.get(kept), lambda: library.put(artifact(2)), library.find):
                with pytest.raises(LibraryError, match="see whether the server"):
                    ask()
            database.resume()
            assert library.get(kept) == artifact(1)
            with psycopg.connect(**DatabaseConfig(**database.section).options()) as other:
                other.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
                with pytest.raises(LibraryError, match=r"no answer in 1 s.* who has been writing for so long"):
                    library.put(artifact(2))
                assert library.get(kept) == artifact(1)
            assert library.get(library.put(artifact(2))) == artifact(2)
            assert library.verify().problems == ()


def test_a_large_artifact_goes_in_parts(library):
    import jax.numpy as jnp

    large = artifact(params={"a": jnp.arange(6 << 20, dtype=jnp.float32)})
    assert library.get(library.put(large)) == large
