"""Telemetry on a real Redis: the contract of every place, faults of the server, groups of consumers."""

import threading
from functools import partial

import pytest
from telemetry.contract import *  # noqa: F403  the tests
from telemetry.samples import Collecting, evaluation

from esper.cli import main
from esper.configs import OonaSettings, RedisConfig
from esper.errors import TelemetryError
from esper.telemetry import Bus, bus, consume_redis, event_of, follow_redis, lane, states
from esper.telemetry.redis_client import client, event_stream, run_index
from esper.telemetry.sinks.redis_streams import RedisStreams
from services.proxy import proxy
from services.servers import PASSWORD, redis

PATIENCE = 60  # seconds within which what is waited for has to come


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("_FIRST", 0.01), ("_LONGEST", 0.1), ("_SOON", 0.01), ("_REPORTS", 0.0)):
        monkeypatch.setattr(lane, name, seconds)
    monkeypatch.setattr(bus, "_LINGER", 0.001)


@pytest.fixture
def oona(request):
    return OonaSettings(prefix=f"test:{request.node.name.encode().hex()[:60]}", block_ms=20)


def there(config, oona, **options):
    """What can be read now."""
    stop = threading.Event()
    stop.set()
    return list(follow_redis(config, oona, stop=stop, **options))


def steps(events):
    return [event.step for event in events if event.event == "evaluate"]


def wait_for(condition):
    pause = threading.Event()
    for _ in range(PATIENCE * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


class OnRedis:
    name = "redis"

    def __init__(self, config, oona):
        self.config, self.oona = config, oona

    def sink(self):
        return RedisStreams(self.config, self.oona)

    def again(self):
        return None

    def events(self):
        return there(self.config, self.oona)


@pytest.fixture
def place(redis_server, oona):
    return OnRedis(RedisConfig(**redis_server.section), oona)


# ---- faults ---------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_in_mid_run_loses_nothing_that_is_not_counted(tmp_path, oona, caplog):
    other = Collecting("other")
    with redis(tmp_path) as server:
        config = RedisConfig(**server.section)
        with Bus(RedisStreams(config, oona), other, timeout=PATIENCE) as bus:
            for step in range(500):
                bus.publish(evaluation(step))
            wait_for(lambda: bus.counts()["redis"].written == 500)
            server.kill()
            for step in range(500, 1000):
                bus.publish(evaluation(step))
            wait_for(lambda: other.of("sink_down"))
            server.start()
            wait_for(lambda: other.of("sink_up"))
            for step in range(1000, 1500):
                bus.publish(evaluation(step))
        assert bus.counts()["redis"].dropped == 0
        found = there(config, oona)
        assert steps(found) == list(range(1500))
        assert [event.sequence for event in found] == list(range(len(found)))
        assert [event.event for event in found if event.event.startswith("sink")] == ["sink_down", "sink_up"]
    (down,) = other.of("sink_down")
    assert f"Redis at 127.0.0.1:{server.port}: " in down.reason and "; start it, or correct redis.host" in down.reason
    assert caplog.text.count("fails, training goes on") == 1


def test_a_server_that_is_not_there_at_the_start_is_used_when_it_is(tmp_path, oona):
    with redis(tmp_path) as server:
        server.kill()
        with Bus(RedisStreams(RedisConfig(**server.section), oona), bound=20, timeout=PATIENCE) as bus:
            for step in range(50):
                bus.publish(evaluation(step))
            wait_for(lambda: bus.counts()["redis"].problem)
            server.start()
            wait_for(lambda: bus.counts()["redis"].written)
        found = there(RedisConfig(**server.section), oona)
        lost = bus.counts()["redis"].dropped
        assert steps(found)[-1] == 49 and lost >= 29
        assert [event.figures["total"] for event in found if event.event == "drops"][-1] == lost


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"password": "a wr0ng one"}, "correct redis.username and redis.password"),
        ({"username": "nobody"}, "correct redis.username and redis.password"),
        ({"password": None}, "correct redis.username and redis.password"),
        ({"port": 1}, "start it, or correct redis.host, redis.port and redis.tls"),
        ({"tls": True, "connect_timeout": 0.2, "timeout": 0.2}, "whether redis.tls is right"),
    ],
    ids=str,
)
def test_what_redis_refuses_says_what_to_do_and_holds_no_secret(redis_server, oona, changed, message, caplog):
    config, other = RedisConfig(**redis_server.section | changed), Collecting("other")
    sink = RedisStreams(config, oona)
    with Bus(sink, other, timeout=0.1) as bus:
        bus.publish(evaluation(0))
        wait_for(lambda: other.of("sink_down"))
    said = [other.of("sink_down")[0].reason, caplog.text, repr(bus.counts()), repr(sink), repr(bus)]
    assert message in said[0] and all(secret not in text for text in said for secret in (PASSWORD, "a wr0ng one"))
    with pytest.raises(TelemetryError, match=message):
        there(config, oona)


def test_a_user_with_the_commands_that_are_named_is_enough(tmp_path, oona):
    with redis(tmp_path) as server:
        config = RedisConfig(**server.section)
        with client(config) as admin:
            commands = ["+eval", "+xadd", "+expire", "+time", "+zadd", "+zremrangebyscore"]
            admin.execute_command("ACL", "SETUSER", "writer", "on", ">pw", f"~{oona.prefix}:*", *commands)
        with Bus(RedisStreams(config.model_copy(update={"username": "writer", "password": "pw"}), oona)) as bus:
            bus.publish(evaluation(7))
        assert bus.counts()["redis"].problem == "" and steps(there(config, oona)) == [7]
        elsewhere = RedisStreams(config.model_copy(update={"username": "writer", "password": "pw"}), OonaSettings())
        with pytest.raises(TelemetryError, match=r"let the user have this command and the keys"):
            elsewhere.write(there(config, oona))
        elsewhere.close()


def test_a_server_out_of_memory_is_said_and_recovers(tmp_path, oona):
    with redis(tmp_path) as server, client(RedisConfig(**server.section)) as admin:
        config = RedisConfig(**server.section)
        admin.set("filler", b"x" * 2_000_000)
        admin.config_set("maxmemory", "1mb")
        with Bus(RedisStreams(config, oona), timeout=PATIENCE) as bus:
            bus.publish(evaluation(1))
            wait_for(lambda: bus.counts()["redis"].problem)
            assert "raise Redis's maxmemory" in bus.counts()["redis"].problem
            admin.config_set("maxmemory", "0")
        assert steps(there(config, oona)) == [1]


@pytest.mark.parametrize("tls", [False, True])
def test_events_travel_encrypted_where_it_is_asked_for(tmp_path, oona, tls):
    with redis(tmp_path, tls=tls) as server:
        config = RedisConfig(**server.section)
        with Bus(RedisStreams(config, oona)) as bus:
            bus.publish(evaluation(3))
        assert steps(there(config, oona)) == [3]


def test_a_network_that_is_slow_and_breaks_loses_nothing(redis_server, oona):
    with proxy(redis_server.port, delay=0.05) as slow:
        config = RedisConfig(**redis_server.section | {"port": slow.port})
        with Bus(RedisStreams(config, oona), timeout=PATIENCE) as bus:
            for step in range(300):
                bus.publish(evaluation(step))
                if step % 100 == 50:
                    slow.cut()
        assert bus.counts()["redis"].dropped == 0
        assert steps(there(config, oona)) == list(range(300))


# ---- bounds ---------------------------------------------------------------------------------------------


def test_streams_are_bounded_expire_and_are_listed(redis_server, oona):
    config, short = RedisConfig(**redis_server.section), oona.model_copy(update={"maxlen": 100})
    with Bus(RedisStreams(config, short), run_id="one") as bus:
        for step in range(3000):
            bus.publish(evaluation(step))
    with client(config) as asked:
        assert 100 <= asked.xlen(event_stream(short, "one")) < 500
        assert 0 < asked.ttl(event_stream(short, "one")) <= short.retention_days * 86_400
        assert asked.zrange(run_index(short), 0, -1) == [b"one"]
    (state,) = states(there(config, short)).values()
    assert state.step == 2999 and state.missed == 0  # it began in the middle


# ---- readers --------------------------------------------------------------------------------------------


def test_several_runs_are_followed_as_they_come_and_through_a_restart(tmp_path, oona):
    with redis(tmp_path) as server:
        config, stop, seen = RedisConfig(**server.section), threading.Event(), []
        reader = threading.Thread(target=lambda: seen.extend(follow_redis(config, oona, stop=stop)))
        reader.start()
        with Bus(RedisStreams(config, oona), run_id="a", timeout=PATIENCE) as first:
            first.publish(evaluation(1))
            with Bus(RedisStreams(config, oona), run_id="b", timeout=PATIENCE) as second:
                second.publish(evaluation(2))
                wait_for(lambda: second.counts()["redis"].written == 1)
            wait_for(lambda: first.counts()["redis"].written == 1)
            server.kill()
            server.start()
            first.publish(evaluation(3))
        stop.set()
        reader.join(PATIENCE)
    assert sorted((event.run_id, event.step) for event in seen if event.event == "evaluate") == [
        ("a", 1), ("a", 3), ("b", 2),
    ]  # fmt: skip


def test_following_from_the_end_or_one_run(redis_server, oona):
    config = RedisConfig(**redis_server.section)
    for name in ("a", "b"):
        with Bus(RedisStreams(config, oona), run_id=name) as bus:
            bus.publish(evaluation(1))
    assert [event.run_id for event in there(config, oona, runs=["b"])] == ["b"]
    events = follow_redis(config, oona, beginning=False)
    asked = threading.Thread(target=lambda: seen.append(next(events)))
    seen = []
    asked.start()
    bus = Bus(RedisStreams(config, oona), run_id="a")
    pause = threading.Event()
    while asked.is_alive():  # until it has looked for where the end is
        bus.publish(evaluation(2))
        pause.wait(0.02)
    bus.close()
    events.close()
    assert [event.step for event in seen] == [2]


def consumed(config, oona, consumer):
    stop = threading.Event()
    stop.set()
    return list(consume_redis(config, oona, consumer=consumer, stop=stop))


def test_a_consumer_that_died_gets_again_what_it_did_not_acknowledge(redis_server, oona):
    config = RedisConfig(**redis_server.section)
    with Bus(RedisStreams(config, oona)) as bus:
        for step in range(10):
            bus.publish(evaluation(step))
    died = consume_redis(config, oona, consumer="a")
    assert [next(died).step for _ in range(4)] == [0, 1, 2, 3]
    died.close()  # in the middle of the event of step 3
    assert consumed(config, oona, "b") == []  # it is too early to take them over
    assert steps(consumed(config, oona, "a")) == list(range(3, 10))
    assert consumed(config, oona, "a") == []


def test_another_consumer_takes_over_what_nobody_acknowledged(redis_server, oona):
    config, hasty = RedisConfig(**redis_server.section), oona.model_copy(update={"claim_idle_ms": 1})
    with Bus(RedisStreams(config, hasty)) as bus:
        for step in range(10):
            bus.publish(evaluation(step))
    died = consume_redis(config, hasty, consumer="a")
    assert next(died).step == 0
    died.close()
    threading.Event().wait(0.05)
    assert steps(consumed(config, hasty, "b")) == list(range(10))


def test_a_consumer_goes_on_when_a_stream_has_expired(redis_server, oona):
    config, stop, seen = RedisConfig(**redis_server.section), threading.Event(), []
    reader = threading.Thread(target=_collect, args=(seen, consume_redis(config, oona, consumer="a", stop=stop)))
    reader.start()
    with client(config) as admin:
        for step in (1, 2):
            with Bus(RedisStreams(config, oona), run_id="one") as bus:
                bus.publish(evaluation(step))
            wait_for(lambda step=step: len(seen) == step)
            admin.delete(event_stream(oona, "one"))
        stop.set()
        reader.join(PATIENCE)
        assert seen == [1, 2] and not admin.exists(event_stream(oona, "one"))


def test_consumers_of_a_group_share_the_work(redis_server, oona):
    config, stop, seen = RedisConfig(**redis_server.section), threading.Event(), {"a": [], "b": []}
    readers = [
        threading.Thread(target=partial(_collect, seen[name], consume_redis(config, oona, consumer=name, stop=stop)))
        for name in seen
    ]
    for reader in readers:
        reader.start()
    with Bus(RedisStreams(config, oona)) as bus:
        for step in range(2000):
            bus.publish(evaluation(step))
    wait_for(lambda: len(seen["a"]) + len(seen["b"]) >= 2000)
    stop.set()
    for reader in readers:
        reader.join(PATIENCE)
    assert sorted(seen["a"] + seen["b"]) == list(range(2000))


def _collect(kept, events):
    kept.extend(event.step for event in events)


def test_watch_reads_the_redis_of_a_configuration(redis_server, oona, tmp_path, capsys, monkeypatch):
    import yaml

    section = redis_server.section | {"password": "${TEST_REDIS_PASSWORD}"}
    monkeypatch.setenv("TEST_REDIS_PASSWORD", PASSWORD)
    config = {"name": "x", "redis": section, "components": {"oona": {"config": {"prefix": oona.prefix}}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with Bus(RedisStreams(RedisConfig(**redis_server.section), oona), run_id="on-redis") as bus:
        bus.publish(evaluation(5, loss=0.25))
    assert main(["watch", "--once", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert "on-redis" in out and "0.25" in out and PASSWORD not in out


def test_an_entry_that_is_no_event_stops_no_reader(redis_server, oona, caplog):
    config = RedisConfig(**redis_server.section)
    with Bus(RedisStreams(config, oona), run_id="a") as bus:
        bus.publish(evaluation(1))
    entries = [
        {"event": "no json"},
        {"event": "no json"},
        {"other": "x"},
        {"event": '{"event": "x", "step": 1, "schema_version": 9}'},
    ]
    with client(config) as there_:
        for entry in entries:
            there_.xadd(event_stream(oona, "a"), entry)
        sink = RedisStreams(config, oona)
        sink.write([event_of(evaluation(2), run_id="a", sequence=9, seconds=1e9)])
        sink.close()
        assert steps(there(config, oona)) == [1, 2]
        said = sorted(record.getMessage().partition(" entries of ")[0] for record in caplog.records)
        assert said == ["telemetry: 1", "telemetry: 3"]
        stop = threading.Event()
        stop.set()
        assert steps(consume_redis(config, oona, consumer="c", stop=stop)) == [1, 2]
        assert there_.xpending(event_stream(oona, "a"), oona.group)["pending"] == 0


def test_what_is_no_run_stops_no_reader(redis_server, oona, caplog):
    config = RedisConfig(**redis_server.section)
    with Bus(RedisStreams(config, oona), run_id="a") as bus:
        bus.publish(evaluation(1))
    with client(config) as there_:
        there_.zadd(run_index(oona), {b"\xff": 1.0, "text": 2.0})
        there_.set(event_stream(oona, "text"), "x")
    stop = threading.Event()
    stop.set()
    assert steps(there(config, oona)) == steps(consume_redis(config, oona, consumer="c", stop=stop)) == [1]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"telemetry: {event_stream(oona, 'text')} is left out: it is no stream"] * 2


def test_a_wrong_clock_of_one_who_writes_costs_no_run_its_place(redis_server, oona, monkeypatch):
    config = RedisConfig(**redis_server.section)
    for run in ("a", "b"):
        sink = RedisStreams(config, oona)
        sink.write([event_of(evaluation(1), run_id=run, sequence=0, seconds=1e9)])
        sink.close()
        monkeypatch.setattr("time.time", lambda: 5e9)
    assert [event.run_id for event in there(config, oona)] == ["a", "b"]
