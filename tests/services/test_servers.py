"""The servers the other tests rely on: they answer, refuse a wrong password, survive a kill, and leave nothing."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import obstore
import psycopg
import pytest
import redis as redis_client
from obstore.store import S3Store

from esper.configs import DatabaseConfig, RedisConfig, StorageConfig
from services.proxy import proxy
from services.servers import postgres, redis, s3


def sql(section, statement, **changed):
    with psycopg.connect(**DatabaseConfig(**(section | changed)).options(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def client(section, **changed):
    return redis_client.Redis(**RedisConfig(**section).options() | changed)


def bucket(section, **changed):
    return S3Store(**StorageConfig(**(section | changed)).options(), retry_config={"max_retries": 0})


@pytest.mark.parametrize("tls", [False, True])
def test_postgres_keeps_what_it_acknowledged_when_it_is_killed(tmp_path, tls):
    with postgres(tmp_path, tls=tls) as server:
        sql(server.section, "CREATE TABLE kept (x int)")
        sql(server.section, "INSERT INTO kept VALUES (7)")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            sql(server.section, "SELECT 1", password="wrong")
        server.kill()
        assert not server.running
        server.start()
        assert sql(server.section, "SELECT x FROM kept") == [(7,)]
        assert sql(server.section, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(tls,)]
        owner = int(sql(server.admin, "SELECT 1")[0][0])
        assert owner == 1 and os.stat(server.data).st_uid != 0
    assert not server.running


@pytest.mark.parametrize("tls", [False, True])
def test_redis_keeps_what_it_acknowledged_when_it_is_killed(tmp_path, tls):
    with redis(tmp_path, tls=tls) as server:
        with client(server.section) as reader:
            reader.xadd("events", {"x": "7"})
        server.kill()
        server.start()
        with client(server.section) as reader:
            assert reader.xlen("events") == 1
        with (
            client(server.section | {"password": "wrong"}) as reader,
            pytest.raises(redis_client.AuthenticationError),
        ):
            reader.ping()


@pytest.mark.parametrize("tls", [False, True])
def test_nanio_keeps_objects_and_checks_signatures(tmp_path, tls):
    with s3(tmp_path, tls=tls) as server:
        obstore.put(bucket(server.section), "a/b", b"seven")
        server.stop()
        server.start()
        assert bytes(obstore.get(bucket(server.section), "a/b").bytes()) == b"seven"
        with pytest.raises(obstore.exceptions.PermissionDeniedError):
            obstore.get(bucket(server.section, secret_key="wrong"), "a/b")


@pytest.mark.parametrize("tls", [False, True])
def test_moto_puts_on_a_condition(tmp_path, tls):
    with s3(tmp_path, flavour="moto", tls=tls) as server:
        obstore.put(bucket(server.section), "a", b"1", mode="create")
        with pytest.raises(obstore.exceptions.AlreadyExistsError):
            obstore.put(bucket(server.section), "a", b"2", mode="create")
        server.kill()
        server.start()
        assert obstore.list(bucket(server.section)).collect() == []


STARTED = """
import sys, time
from pathlib import Path
from services.servers import postgres, redis, s3

place = Path(sys.argv[1])
with postgres(place) as one, redis(place) as two, s3(place) as three:
    print(one.port, two.port, three.port, one.data.parent, flush=True)
    time.sleep(600)
"""


def test_servers_do_not_outlive_tests_that_are_killed(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    command = [sys.executable, "-c", STARTED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as tests:
        *ports, home = tests.stdout.readline().split()
        assert all(listens(port) for port in ports) and len(ports) == 3
        tests.kill()
    deadline = time.monotonic() + 30
    while any(listens(port) for port in ports) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(listens(port) for port in ports)
    if Path(home) != tmp_path / "postgres":  # the one thing that a kill leaves, in the folder for such things
        shutil.rmtree(home)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_a_proxy_delays_refuses_and_cuts(redis_server):
    with proxy(redis_server.port) as between:
        section = redis_server.section | {"port": between.port}
        with client(section, socket_timeout=0.5, retry=None) as reader:
            assert reader.ping()
            between.delay = 2.0
            with pytest.raises(redis_client.TimeoutError):
                reader.ping()
            between.delay = 0.0
            between.cut()
            between.refusing = True
            with pytest.raises(redis_client.ConnectionError):
                reader.ping()
            between.refusing = False
            assert reader.ping()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", between.port))


def test_a_paused_server_answers_when_it_goes_on(tmp_path):
    with redis(tmp_path) as server, client(server.section, socket_timeout=0.3, retry=None) as reader:
        assert reader.ping()
        server.pause()
        with pytest.raises(redis_client.TimeoutError):
            reader.ping()
        server.resume()
        assert reader.ping()
