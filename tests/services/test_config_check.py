"""`esper config check` against real servers: what it finds right, and what it says of everything that can be wrong."""

import re

import pytest

from esper.cli import main
from esper.configs import EsperConfig
from esper.configs.checks import examine
from services.servers import ADMIN_PASSWORD, PASSWORD, postgres, redis, s3
from services.test_servers import client, sql

SERVICES = ("database", "redis", "storage")


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """The three services over TLS, and folders with their certificates."""
    folder = tmp_path_factory.mktemp("secure")
    with postgres(folder, tls=True) as database, redis(folder, tls=True) as cache, s3(folder, tls=True) as storage:
        yield {"database": database, "redis": cache, "storage": storage}


def found(tmp_path, seconds=20, **sections):
    config = EsperConfig(name="n", training={"output_dir": str(tmp_path)}, **sections)
    return [f for f in examine(config, seconds=seconds) if f.subject in SERVICES]


def failure(tmp_path, **sections):
    failed = [str(finding) for finding in found(tmp_path, **sections) if finding.verdict == "failed"]
    assert len(failed) == 1, failed
    assert PASSWORD not in failed[0] and ADMIN_PASSWORD not in failed[0]
    return failed[0]


def kept(folder, value):
    """A text in a file of its own: drivers take all of them as files hold them."""
    if not isinstance(value, str):
        return str(value).lower()
    file = folder / f"secret{len(list(folder.iterdir()))}"
    file.write_text(value)
    file.chmod(0o600)
    return f"'${{file:{file}}}'"


def test_all_is_well(tmp_path, secure, capsys):
    verdicts = found(tmp_path, **{name: server.section for name, server in secure.items()})
    assert {finding.verdict for finding in verdicts} == {"ok"} and len(verdicts) == 8
    sections = "\n".join(
        f"{name}: {{{', '.join(f'{k}: {kept(tmp_path, v)}' for k, v in server.section.items())}}}"
        for name, server in secure.items()
    )
    path = tmp_path / "run.yaml"
    path.write_text(f"name: n\ntraining: {{output_dir: {tmp_path}}}\n{sections}\n")
    assert main(["config", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "no problems" in out and PASSWORD not in out


@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("database", {"password": "wrong-5ecret"}, "check database.username and database.password"),
        ("database", {"username": "nobody_of_ours"}, "check database.username and database.password"),
        ("database", {"database": "absent"}, "create it: CREATE DATABASE absent OWNER urza"),
        ("database", {"ssl_mode": "disable", "ssl_root_cert": None}, "ssl_mode: verify-full"),
        ("database", {"port": 1}, "start the server"),
        ("database", {"host": "no.such.host.invalid"}, "check database.host"),
        ("redis", {"password": "wrong-5ecret"}, "check redis.username and redis.password"),
        ("redis", {"password": None}, "check redis.username and redis.password"),
        ("redis", {"username": "nobody"}, "does not let the user 'nobody' in"),
        ("redis", {"database": 99}, "has no database 99"),
        ("redis", {"tls": False, "ca_file": None}, "redis.tls if that port speaks TLS"),
        ("redis", {"port": 1}, "start the server"),
        ("storage", {"secret_key": "wrong-5ecret"}, "check storage.secret_key"),
        ("storage", {"access_key": "wrong-5ecret"}, "check storage.access_key"),
        ("storage", {"bucket_name": "absent"}, "there is no bucket absent"),
        ("storage", {"endpoint_url": "http://127.0.0.1:1"}, "start the server"),
        ("storage", {"endpoint_url": "https://no.such.host.invalid"}, "no such host"),
    ],
)
def test_what_is_wrong_is_said_with_the_next_move(tmp_path, secure, name, changed, told):
    said = failure(tmp_path, **{name: secure[name].section | changed})
    assert told in said and "wrong-5ecret" not in said


@pytest.mark.parametrize(
    ("name", "field"), [("database", "ssl_root_cert"), ("redis", "ca_file"), ("storage", "ca_file")]
)
def test_a_certificate_of_somebody_else_is_not_trusted(tmp_path, secure, name, field):
    section = secure[name].section
    other = section[field].replace("ca.pem", "other.pem")
    said = failure(tmp_path, **{name: section | {field: other}})
    assert "trusted" in said or "is not the authority" in said
    assert field in said


def test_a_service_without_tls_is_told_from_one_with_it(tmp_path, redis_server, postgres_server):
    said = failure(tmp_path, redis=redis_server.section | {"tls": True})
    assert "is that its tls-port?" in said
    said = failure(tmp_path, database=postgres_server.section | {"ssl_mode": "require"})
    assert "switch TLS on" in said


def test_a_role_that_may_make_no_tables_is_told(tmp_path, postgres_server):
    admin = postgres_server.admin
    sql(admin, "CREATE ROLE reader LOGIN PASSWORD 'r'")
    sql(admin, "CREATE DATABASE bare OWNER urza")  # without the tables that other tests made
    section = postgres_server.section | {"database": "bare"}
    said = failure(tmp_path, database=section | {"username": "reader", "password": "r"})
    assert "GRANT USAGE, CREATE ON SCHEMA public TO reader" in said
    assert sql(section, "SELECT 1 FROM pg_tables WHERE tablename LIKE 'esper_check%'") == []


def test_a_superuser_is_warned_of(tmp_path, postgres_server):
    warned = [f.told for f in found(tmp_path, database=postgres_server.admin) if f.verdict == "warning"]
    assert warned == ["the role is a superuser"]


def test_a_user_that_may_not_use_streams_is_told_the_line_that_helps(tmp_path, redis_server):
    section = redis_server.section | {"username": "weak", "password": "w"}
    with client(redis_server.section) as admin:
        admin.execute_command("ACL", "SETUSER", "weak", "on", ">w", "~other:*", "+@connection", "+info")
        said = failure(tmp_path, redis=section)
        line = re.search(r"allow it: ACL SETUSER weak (.*)", said)[1]
        admin.execute_command("ACL", "SETUSER", "weak", *line.split())
        assert [f for f in found(tmp_path, redis=section) if f.verdict == "failed"] == []
        assert admin.keys("esper:check:*") == []
        admin.acl_deluser("weak")


@pytest.mark.parametrize("state", ["paused", "killed"])
def test_a_server_that_hangs_or_died_is_told_in_time(tmp_path, state):
    with postgres(tmp_path / "p") as database, redis(tmp_path / "r") as cache, s3(tmp_path / "s") as storage:
        servers = {"database": database, "redis": cache, "storage": storage}
        for server in servers.values():
            server.pause() if state == "paused" else server.kill()
        sections = {name: server.section for name, server in servers.items()}
        verdicts = found(tmp_path, seconds=2, **sections)
        assert {finding.subject for finding in verdicts if finding.verdict == "failed"} == set(SERVICES)
        assert not [finding for finding in verdicts if PASSWORD in str(finding)]
