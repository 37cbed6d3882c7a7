"""What docs/operations.md and deploy/ tell servers, told to real ones: enough for esper, and no more."""

import re
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
import redis as redis_client

from esper.configs import EsperConfig
from esper.configs.checks import database as check
from esper.configs.checks import examine
from esper.library import open_library, schema
from services.process import Server, free_port
from services.servers import postgres
from services.test_servers import client, sql

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text()
PASSWORD = "p4ss-of-the-test"


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)


def statements(text):
    without = re.sub(r"--.*", "", text).replace("'...'", f"'{PASSWORD}'")
    return [statement.strip() for statement in without.split(";") if statement.strip()]


def failed(tmp_path, subject, **sections):
    config = EsperConfig(name="n", training={"output_dir": str(tmp_path)}, **sections)
    return [finding for finding in examine(config) if finding.verdict == "failed" and finding.subject == subject]


def test_the_roles_of_postgresql_can_do_what_esper_needs_and_no_more(tmp_path):
    owner, strict = blocks("sql")
    with postgres(tmp_path) as server:
        sql(server.admin, "DROP DATABASE urza_db")
        sql(server.admin, "DROP ROLE urza")
        for statement in statements(owner):
            sql(server.admin, statement)
        urza = server.section | {"password": PASSWORD}
        assert failed(tmp_path, "database", database=urza) == []
        for forbidden in ("CREATE ROLE x", "CREATE DATABASE x", "SELECT pg_read_file('/etc/passwd')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                sql(urza, forbidden)

        sql(urza, "CREATE TABLE kernels (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, x text)")
        made, *granted = statements(strict)
        sql(server.admin, made)
        for statement in granted:
            sql(urza, statement)
        sql(urza, "CREATE TABLE later (x text)")
        runs = urza | {"username": "runs"}
        for table in ("kernels", "later"):
            sql(runs, f"INSERT INTO {table} (x) VALUES ('a')")
            sql(runs, f"UPDATE {table} SET x = 'b'")
            assert sql(runs, f"SELECT x FROM {table}") == [("b",)]
            sql(runs, f"DELETE FROM {table}")
        for forbidden in ("CREATE TABLE more (x int)", "DROP TABLE kernels", "TRUNCATE kernels"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                sql(runs, forbidden)
        (finding,) = failed(tmp_path, "database", database=runs)
        assert "may not make tables" in finding.told and "GRANT USAGE, CREATE" in finding.move


def catalogue(tmp_path, database):
    """Opens the library as a run does, which makes its tables if they are not there."""
    components = {"urza": {"config": {"folder": str(tmp_path / "library")}}}
    with open_library(EsperConfig(name="n", database=database, components=components)) as library:
        return library.find()


def test_a_role_that_only_reads_and_writes_rows_is_enough_once_the_tables_are_there(tmp_path):
    made, *granted = statements(blocks("sql")[1])
    with postgres(tmp_path) as server:
        urza, runs = server.section, server.section | {"username": "runs", "password": PASSWORD}
        catalogue(tmp_path, urza)
        sql(server.admin, made)
        for statement in granted:
            sql(urza, statement)
        assert catalogue(tmp_path, runs) == [] and failed(tmp_path, "database", database=runs) == []
        told = [str(finding) for finding in examine(EsperConfig(name="n", database=runs))]
        assert [line for line in told if "migrations are another's" in line and line.startswith("ok")]

        sql(urza, "REVOKE DELETE ON esper_kernel_tags FROM runs")
        (finding,) = failed(tmp_path, "database", database=runs)
        assert "lacks rights to those there: DELETE ON esper_kernel_tags" in finding.told
        sql(urza, "GRANT DELETE ON esper_kernel_tags TO runs")
        sql(urza, "UPDATE esper_library_version SET version_num = '0000'")
        (finding,) = failed(tmp_path, "database", database=runs)
        assert "of schema 0000, not 0001" in finding.told and "esper library list" in finding.move


def test_the_check_knows_the_schema_of_the_catalogue():
    assert all(name.startswith("esper_") for name in schema.metadata.tables)
    assert (check.VERSION_TABLE, check.REVISION) == (schema.VERSION_TABLE, schema.HEAD)


def test_the_user_of_redis_can_do_what_esper_needs_and_no_more(tmp_path, redis_server):
    (line,) = re.findall(r"^ACL SETUSER esper (.*)$", PAGE, re.M)
    with client(redis_server.section) as admin:
        admin.execute_command("ACL", "SETUSER", "esper", *line.replace("PASSWORD", PASSWORD).split())
    section = redis_server.section | {"username": "esper", "password": PASSWORD}
    only_ours_and_only_so(tmp_path, section)
    with client(redis_server.section) as admin:
        admin.acl_deluser("esper")


def only_ours_and_only_so(tmp_path, section):
    assert failed(tmp_path, "redis", redis=section) == []
    with client(section) as user:
        user.xadd("esper:events:x", {"a": 1})
        user.expire("esper:events:x", 60)
        user.delete("esper:events:x")
        for forbidden in (
            lambda: user.xadd("other:events", {"a": 1}),
            lambda: user.eval("return redis.call('DEL', 'other:events')", 0),
            lambda: user.flushdb(),
            lambda: user.keys("*"),
            lambda: user.config_get("*"),
            lambda: user.execute_command("ACL", "LIST"),
            lambda: user.set("esper:x", 1),
            lambda: user.publish("esper:x", "y"),
            lambda: user.client_list(),
        ):
            with pytest.raises(redis_client.ResponseError, match=r"(?i)permission|NOPERM|can't access"):
                forbidden()


def test_what_the_deployment_tells_redis_works(tmp_path):
    """deploy/redis/redis.conf and the files of deploy/secrets.sh, with the folders and the port of this machine."""
    keys, data = tmp_path / "keys", tmp_path / "data"
    data.mkdir()
    subprocess.run([ROOT / "deploy" / "secrets.sh", keys], check=True)
    port = free_port()
    text = (ROOT / "deploy" / "redis" / "redis.conf").read_text()
    text = text.replace("/keys/", f"{keys}/").replace("dir /data", f"dir {data}").replace("6379", str(port))
    (tmp_path / "redis.conf").write_text(f"{text}\nbind 127.0.0.1\n")
    secure = {"host": "localhost", "port": port, "tls": True, "ca_file": str(keys / "ca.pem")}
    section = secure | {"username": "esper", "password": (keys / "redis_password").read_text()}
    (tmp_path / "log").touch()

    def answers():
        try:
            with client(section) as user:
                return user.ping()
        except redis_client.ConnectionError:
            return False

    server = Server("redis", ["redis-server", str(tmp_path / "redis.conf")], port, tmp_path / "log", section, answers)
    server.start()
    try:
        only_ours_and_only_so(tmp_path, section)
        with client(secure | {"username": "health", "password": "any"}) as health:
            assert health.ping()
            with pytest.raises(redis_client.ResponseError):
                health.info()
        with client(secure) as nobody, pytest.raises(redis_client.AuthenticationError):
            nobody.ping()
    finally:
        server.kill()


def test_what_the_deployment_tells_postgresql_works(tmp_path):
    """deploy/postgres/init.sh as the image runs it, and a pg_hba.conf that lets nobody else in."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "database_password").write_text(PASSWORD)
    script = tmp_path / "init.sh"
    script.write_text((ROOT / "deploy" / "postgres" / "init.sh").read_text().replace("/keys/", f"{keys}/"))
    with postgres(tmp_path / "server", tls=True) as server:
        sql(server.admin, "DROP DATABASE urza_db")
        sql(server.admin, "DROP ROLE urza")
        environment = {"POSTGRES_USER": "admin", "PGPASSWORD": server.admin["password"], "PGHOST": "127.0.0.1"}
        environment |= {"PGPORT": str(server.port), "PATH": "/usr/bin:/bin"}
        assert shutil.which("psql")
        subprocess.run(["sh", script], check=True, env=environment, capture_output=True)
        urza = server.section | {"password": PASSWORD}
        assert failed(tmp_path, "database", database=urza) == []
        shutil.copyfile(ROOT / "deploy" / "postgres" / "pg_hba.conf", server.data / "pg_hba.conf")
        server.stop()
        server.answers = _answering(urza)
        server.start()
        assert failed(tmp_path, "database", database=urza) == []
        with pytest.raises(psycopg.OperationalError, match="no pg_hba"):
            sql(urza, "SELECT 1", ssl_mode="disable", ssl_root_cert=None)
        with pytest.raises(psycopg.OperationalError, match="no pg_hba"):
            sql(server.admin, "SELECT 1")


def _answering(section):
    def answers():
        try:
            return sql(section, "SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    return answers
