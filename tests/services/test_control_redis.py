"""Remote control through a real Redis: the contract of channels, and what becomes of runs when it is slow or gone."""

import socket
import threading
import traceback
from contextlib import contextmanager

import pytest
from control.contract import CHECKS
from control.runs import GROWTH, KEYS, alone, bit_equal, run, seen, serving, told

from esper.configs import RedisConfig
from esper.control import RemotePolicy
from esper.control.channel import CONTROLLER
from esper.control.redis import RedisChannel
from esper.control.seal import MAX_BYTES
from esper.errors import ChannelError
from esper.growth.policy import Note
from esper.growth.tamiyo import Tamiyo
from services.proxy import proxy
from services.servers import redis

PATIENT = 60.0


@contextmanager
def ends(section):
    """What makes ends of a channel, all closed after the test."""
    made = []

    def end(inbox, **changes):
        made.append(RedisChannel(RedisConfig(**{**section, **changes}), inbox, timeout=PATIENT))
        return made[-1]

    try:
        yield end
    finally:
        for channel in made:
            channel.close()


@pytest.fixture
def section(redis_server):
    """A database of its own for every test, emptied."""
    section = {**redis_server.section, "database": 7}
    end = RedisChannel(RedisConfig(**section), "nobody")
    end._client.flushdb()
    end.close()
    return section


def remote(channel, **changes):
    return RemotePolicy(channel, KEYS, local=Tamiyo(GROWTH), run="run-1", **{"timeout": PATIENT, **changes})


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_channels(check, section):
    with ends(section) as end:
        check(end)


def test_an_inbox_goes_when_nobody_writes_to_it_any_more(section):
    with ends(section) as end:
        own = end("run-1")
        own.send("run-1", b"message")
        assert 0 < own._client.ttl("esper:control:run-1") <= 24 * 3600


@pytest.mark.parametrize("changes", [{"password": "wrong"}, {"port": 1}])
def test_a_server_that_refuses(section, changes):
    with ends(section) as end:
        channel = end("run-1", **changes)
        with pytest.raises(ChannelError, match=r"Redis at 127\.0\.0\.1") as error:
            channel.receive(0)
        assert section["password"] not in str(error.value) and "wrong" not in str(error.value).replace("WRONGPASS", "")
        found = run(remote(channel))
        assert bit_equal(found, alone()) and "Redis at 127.0.0.1" in told(found, "remote")[0]


def test_the_same_run_bit_for_bit(section):
    with ends(section) as end, serving(end(CONTROLLER)):
        found = run(remote(end("run-1")))
    assert bit_equal(found, alone())
    assert told(found, "remote") == [f"the controller decides on observation {n}" for n in range(1, decided(found) + 1)]


def decided(found):
    return len(told(found, "remote"))


def test_redis_is_killed_and_restarted_in_mid_run(tmp_path):
    """Nobody is asked in vain twice, training goes on, and afterwards the controller decides again."""

    def disturb(record, run):
        if record.event == "evaluate" and record.step == 10:
            server.kill()
        if record.event == "evaluate" and record.step == 20:
            server.start()

    with redis(tmp_path) as server, ends(server.section) as end, serving(end(CONTROLLER)):
        found = run(remote(end("run-1"), patience=1, longest_rest=1), steps=60, callbacks=[disturb])
    assert bit_equal(found, run(steps=60))
    who = [reason.split(":")[0] for reason in told(found, "remote")]
    assert who[0].startswith("the controller") and "the local default decides" in who
    assert who[-1].startswith("the controller")


def test_a_server_that_hangs_costs_the_timeout_and_no_more(tmp_path):
    with redis(tmp_path) as server, ends(server.section) as end:
        channel = RedisChannel(RedisConfig(**server.section), "run-1", timeout=0.2)
        server.pause()
        found = run(remote(channel, timeout=0.2))
        server.resume()
        channel.close()
        end("nobody").receive(0)
    assert bit_equal(found, alone())
    assert [reason.split(":")[0] for reason in told(found, "remote")] == ["the local default decides"] * decided(found)


def test_a_network_that_is_slower_than_the_timeout(section):
    with proxy(section["port"], delay=0.4) as slow, ends(section) as end, serving(end(CONTROLLER)):
        channel = RedisChannel(RedisConfig(**{**section, "port": slow.port}), "run-1", timeout=0.3)
        found = run(remote(channel, timeout=0.3))
        channel.close()
    assert bit_equal(found, alone())
    assert all(reason.startswith("the local default") for reason in told(found, "remote"))


def test_a_network_that_is_slow_and_fast_enough(section):
    with proxy(section["port"], delay=0.05) as slow, ends(section) as end, serving(end(CONTROLLER)):
        found = run(remote(end("run-1", port=slow.port)), steps=15)
    assert all(reason.startswith("the controller") for reason in told(found, "remote"))


def test_connections_that_are_cut(section):
    with proxy(section["port"]) as line, ends(section) as end, serving(end(CONTROLLER)):
        found = run(remote(end("run-1", port=line.port)), callbacks=[lambda record, run: line.cut()])
    assert bit_equal(found, alone())
    assert all(reason.startswith("the controller") for reason in told(found, "remote"))


def test_an_entry_of_any_size_costs_no_more_than_a_message_and_stands_in_nobody_s_way(section):
    with ends(section) as end:
        own = end("run-1")
        for fields in ({"m": b"x" * 30_000_000}, {"other": b"x" * 30_000_000}, {"m": b"good"}):
            own._client.xadd("esper:control:run-1", fields)
        read = own._client.info("stats")["total_net_output_bytes"]
        assert len(own.receive(0)) == MAX_BYTES + 1
        assert (own.receive(0), own.receive(0), own.receive(0)) == (b"", b"good", None)
        assert own._client.info("stats")["total_net_output_bytes"] - read < 2 * MAX_BYTES


def flooded(client, count=100_000):
    """Both inboxes, filled past the bound that senders keep to."""
    with client.pipeline(transaction=False) as pipeline:
        for inbox in ("controller", "run-1"):
            for number in range(count):
                pipeline.xadd(f"esper:control:{inbox}", {"m": b"nonsense"})
                if number % 5000 == 0:
                    pipeline.execute()
        pipeline.execute()


def test_an_answer_is_found_in_a_flood(section):
    """Without going through what lies before it."""
    with ends(section) as end:
        flooded(end("nobody")._client)
        policy = remote(end("run-1"))
        with serving(end(CONTROLLER)):
            actions, _ = policy(seen(), policy.start())
    said = [(action.event, action.reason) for action in actions if isinstance(action, Note)]
    assert said[-1] == ("remote", "the controller decides on observation 1")
    assert sum(int(reason.split()[0]) for _, reason in said if reason.endswith("more messages")) < 50_000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client, key: client.set(key, b"no stream"),
        lambda client, key: client.xadd(key, {"m": b"nonsense"}, id=f"{2**64 - 1}-{2**64 - 1}"),
    ],
    ids=["another type", "the highest id"],
)
def test_an_inbox_that_nobody_could_write_to_any_more_works_again_when_it_is_looked_into(spoil, section):
    with ends(section) as end:
        own = end("run-1")
        spoil(own._client, "esper:control:run-1")
        with pytest.raises(ChannelError):
            own.send("run-1", b"message")
        own.receive(0)
        own.send("run-1", b"message")
        assert own.receive(0) == b"message"


def test_what_was_put_where_the_answer_is_looked_for_makes_room_for_it(section):
    with ends(section) as end:
        own = end("run-1")
        for _ in range(50):
            own._client.xadd(f"esper:control:run-1:{'a' * 32}", {"m": b"nonsense"})
        own.send("run-1", b"wanted", "a" * 32)
        own._client.xadd(f"esper:control:run-1:{'a' * 32}", {"m": b"nonsense"})
        assert own.receive(0, "a" * 32) == b"wanted"


def test_nothing_stays_of_questions_and_answers(section):
    with ends(section) as end, serving(end(CONTROLLER)):
        own = end("run-1")
        run(remote(own), steps=15)
        assert own._client.keys("*") == []


@pytest.mark.parametrize("password", ["hidden one", "a/b"])
def test_what_a_server_quotes_of_the_password_is_no_part_of_the_error(password):
    """As one does that knows no AUTH."""
    answer = f"-ERR unknown command 'AUTH', with args beginning with: '{password}'\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with server.accept()[0] as there:
                while there.recv(4096):
                    there.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        config = RedisConfig(host="127.0.0.1", port=server.getsockname()[1], password=password)
        channel = RedisChannel(config, "run-1", timeout=5)
        with pytest.raises(ChannelError, match=r"AUTH.*\*\*\*") as error:
            channel.receive(0)
        channel.close()
        thread.join(5)
    shown = "".join(traceback.format_exception(error.value))
    assert password not in shown and "\n" not in str(error.value)
