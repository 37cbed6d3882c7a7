"""Whatever happens to the servers while a run goes on, it trains to its end and to the same model.

What was acknowledged before is there afterwards, what could not be delivered waits on this machine, and nothing that is
written or said holds a password.
"""

import json
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import psycopg
import pytest

from esper.cli import main
from esper.configs import EsperConfig, RedisConfig
from esper.job import run
from esper.library import open_library
from esper.telemetry import read
from services.proxy import proxy
from services.servers import PASSWORD, postgres, redis, s3

TAMIYO = {"trigger": "always", "train_steps": 40, "blend_steps": 10, "hold_steps": 20, "max_kernels": 1, "rank": 16}
STEPS, EVERY, WRONG = 160, 10, "hunter2-hunter2"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """A server of each kind behind a proxy; tests break them and mend them again."""
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        database, events, storage = (
            stack.enter_context(kind(folder / kind.__name__)) for kind in (postgres, redis, s3)
        )
        proxies = [stack.enter_context(proxy(server.port)) for server in (database, events, storage)]
        before = {
            "database": {**database.section, "port": proxies[0].port},
            "redis": {**events.section, "port": proxies[1].port},
            "storage": {**storage.section, "endpoint_url": f"http://127.0.0.1:{proxies[2].port}"},
        }
        yield SimpleNamespace(database=database, redis=events, storage=storage, proxies=proxies, sections=before)


def admin(servers, *statements):
    options = {"host": "127.0.0.1", "port": servers.database.port, "user": "admin", "dbname": "postgres"}
    password = servers.database.admin["password"]
    with psycopg.connect(**options, password=password, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def redis_does(servers, password, *commands):
    import redis as client

    with client.Redis(**RedisConfig(**{**servers.redis.section, "password": password}).options()) as connection:
        for command in commands:
            connection.execute_command(*command)


def database_expires(servers):
    admin(
        servers,
        "ALTER ROLE urza VALID UNTIL '2001-01-01'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'urza'",
    )


def redis_expires(servers):
    redis_does(servers, PASSWORD, ("CONFIG", "SET", "requirepass", WRONG))
    servers.proxies[1].cut()


def storage_expires(servers):
    servers.storage.kill()
    servers.storage.environment["NANIO_SECRET_KEY"] = WRONG
    servers.storage.start()


def storage_is_valid(servers):
    servers.storage.kill()
    servers.storage.environment["NANIO_SECRET_KEY"] = PASSWORD
    servers.storage.start()


def storage_is_two_hours_ahead(servers):
    servers.storage.kill()
    servers.storage.command[:0] = ["faketime", "-f", "+2h"]
    servers.storage.start()


def storage_tells_the_time(servers):
    servers.storage.kill()
    del servers.storage.command[:3]
    servers.storage.start()


def killed(*names):
    return lambda servers: [getattr(servers, name).kill() for name in names]


def started(*names):
    return lambda servers: [getattr(servers, name).start() for name in names]


def slow(seconds):
    def make(servers):
        for one in servers.proxies:
            one.delay = seconds

    return make


def cut(servers):
    for one in servers.proxies:
        one.cut()


def nothing(servers):
    """The fault is over by itself."""


ALL = ("database", "redis", "storage")
# What happens at the fourth evaluation, what mends it at the tenth, or after the run; and whether publishing can work.
FAULTS = {
    "all cut": (cut, nothing, True, True),
    "database restarted": (killed("database"), started("database"), True, True),
    "redis restarted": (killed("redis"), started("redis"), True, True),
    "storage restarted": (killed("storage"), started("storage"), True, True),
    "all restarted": (killed(*ALL), started(*ALL), True, True),
    "database gone": (killed("database"), started("database"), False, False),
    "storage gone": (killed("storage"), started("storage"), False, False),
    "all gone": (killed(*ALL), started(*ALL), False, False),
    "slow network": (slow(0.3), slow(0.0), False, True),
    "database credentials expire": (
        database_expires,
        lambda servers: admin(servers, "ALTER ROLE urza VALID UNTIL 'infinity'"),
        False,
        False,
    ),
    "redis credentials expire": (
        redis_expires,
        lambda servers: redis_does(servers, WRONG, ("CONFIG", "SET", "requirepass", PASSWORD)),
        False,
        True,
    ),
    "storage with another clock": (storage_is_two_hours_ahead, storage_tells_the_time, False, False),
    "storage credentials expire": (storage_expires, storage_is_valid, False, False),
}


# What the run says is to be done about it.
MOVES = {
    "database gone": "see whether the server runs",
    "all gone": "see whether",
    "storage gone": "see whether it runs",
    "database credentials expire": "database.password",
    "storage credentials expire": "storage.secret_key",
    "storage with another clock": "the clocks",
}


def config(folder, sections, **urza):
    components = {
        "tamiyo": {"config": TAMIYO},
        "urza": {"config": {"folder": str(folder / "library"), "draw": False, **urza}},
        "nissa": {"config": {"close_timeout": 3}},
    }
    training = {"data": "digits", "model": "mlp", "target_layers": ["inner"], "steps": STEPS, "eval_every": EVERY}
    training |= {"batch_size": 32, "learning_rate": 0.01, "output_dir": str(folder / "run")}
    return EsperConfig(name="faults", components=components, training=training, **sections)


def ran(settings, at=None):
    """The job, and what is called at so many evaluations."""
    count = 0

    def listen(record):
        nonlocal count
        if record.event == "evaluate":
            count += 1
            if at and count in at:
                at[count]()

    return run(settings, control=False, listen=listen)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the run gives where nothing is configured."""
    return ran(config(tmp_path_factory.mktemp("undisturbed"), {}))


def losses(events):
    return [event.figures["validation_loss"] for event in events if event.event == "evaluate"]


def checked(folder, job, undisturbed):
    """The run as it was written: whole, in order, with the same figures, and without a secret."""
    text = (folder / "run" / "history.jsonl").read_text()
    events = read(folder / "run" / "history.jsonl")
    assert [event.sequence for event in events] == list(range(len(events)))
    assert [event.reason for event in events if event.event == "end"] == ["the last step is done"]
    assert losses(events) == [r.figures["validation_loss"] for r in undisturbed.growth.records if r.event == "evaluate"]
    assert job.certificate == undisturbed.certificate
    for secret in (PASSWORD, json.dumps(PASSWORD)[1:-1], WRONG):
        assert secret not in text
    return events


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_outlives_its_servers(tmp_path, servers, undisturbed, capsys, name):
    fault, mend, within, publishes = FAULTS[name]
    settings = config(tmp_path, servers.sections, tags=[name.replace(" ", "-")])
    calls = {4: lambda: fault(servers), **({10: lambda: mend(servers)} if within else {})}
    try:
        job = ran(settings, calls)
    finally:
        if not within:
            mend(servers)
    events = checked(tmp_path, job, undisturbed)
    (said,) = [event.reason for event in events if event.event == "library"]
    assert job.published is not None
    assert bool(job.published.digests) == publishes, said
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings.model_dump(mode="json")))
    if not publishes:
        assert job.published.waiting and "`esper library push` delivers" in said
        assert MOVES[name] in said
        assert main(["library", "push", "--config", str(path)]) == 0
    with open_library(settings) as library:
        (kept,) = library.find(tag=name.replace(" ", "-"))
        assert library.get(kept.digest).digest == kept.digest
        assert events[0].run_id in {origin.run for origin in library.origins(kept.digest)}
        assert library.verify().problems == ()
    output = capsys.readouterr()
    assert PASSWORD not in output.out + output.err


def test_wrong_passwords_from_the_start(tmp_path, servers, undisturbed):
    sections = {
        "database": {**servers.sections["database"], "password": WRONG},
        "redis": {**servers.sections["redis"], "password": WRONG},
        "storage": {**servers.sections["storage"], "secret_key": WRONG},
    }
    job = ran(config(tmp_path, sections, draw=True))
    events = checked(tmp_path, job, undisturbed)
    said = " ".join(event.reason for event in events)
    assert "set database.username and database.password" in said or "database.password" in said
    assert "redis.password" in said, said
    assert job.published is not None and job.published.waiting


def test_events_that_waited_for_redis_are_all_there_afterwards(tmp_path, servers, undisturbed):
    from esper.telemetry import follow_redis

    calls = {4: servers.redis.kill, 10: servers.redis.start}
    job = ran(config(tmp_path, servers.sections), calls)
    events = checked(tmp_path, job, undisturbed)
    stop = threading.Event()
    stop.set()
    settings = config(tmp_path, servers.sections)
    found = list(follow_redis(settings.redis, settings.oona_settings(), runs=[events[0].run_id], stop=stop))
    about = ("sink_down", "sink_up", "drops")  # of the places themselves; not every place is told
    assert [event.sequence for event in found if event.event not in about] == [
        event.sequence for event in events if event.event not in about
    ]
