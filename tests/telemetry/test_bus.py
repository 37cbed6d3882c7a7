"""The bus: nobody waits for a sink, what is lost is counted and said, and one that comes back is used again."""

import gc
import logging
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from esper.errors import ArgumentError, TelemetryError
from esper.telemetry import Bus, Jsonl, Subscriber, bus, lane, read
from esper.train.history import Record
from telemetry.samples import Collecting, evaluation


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("_FIRST", 0.001), ("_LONGEST", 0.01), ("_SOON", 0.001), ("_REPORTS", 0.0)):
        monkeypatch.setattr(lane, name, seconds)
    monkeypatch.setattr(bus, "_LINGER", 0.001)


def publish(bus, steps):
    for step in steps:
        bus.publish(evaluation(step))


def test_a_blocked_sink_hinders_nobody_and_its_drops_are_counted_and_said():
    blocked, free = Collecting("blocked"), Collecting("free")
    blocked.open.clear()
    with Bus(blocked, free, bound=10) as bus:
        bus.publish(evaluation(0))
        assert blocked.entered.wait(30)  # with the first event in its hands
        for step in range(1, 101):
            bus.publish(evaluation(step))
            wait_for(lambda step=step: len(free.of("evaluate")) == step + 1)
        assert blocked.events == [] and bus.counts()["blocked"].dropped == 90
        blocked.open.set()
        wait_for(lambda: blocked.of("drops"))
        publish(bus, [101])
    assert [event.step for event in blocked.of("evaluate")] == [0, *range(91, 102)]  # the oldest gave way
    first, last = free.of("drops")
    assert first.figures == {"sink": "blocked", "dropped": 90, "total": 90} and "90 events" in first.reason
    assert last.figures == {"sink": "blocked", "total": 90}  # the summary
    assert bus.counts()["blocked"].dropped == 90 and bus.counts()["free"].dropped == 0
    gaps = [b - a for a, b in zip(blocked.numbers(), blocked.numbers()[1:], strict=False)]
    assert sum(gap - 1 for gap in gaps) == 90  # numbers make it visible


def wait_for(condition):
    """Returns once it holds; a test that waits for ever fails by the run's time limit."""
    pause = threading.Event()
    for _ in range(30_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it never came")


def test_a_sink_that_comes_back_gets_what_waited_and_it_is_said_once(caplog):
    caplog.set_level(logging.WARNING, "esper.telemetry")
    away, other = Collecting("away", failures=6), Collecting("other")
    with Bus(away, other) as bus:
        publish(bus, range(20))
        wait_for(lambda: other.of("sink_up"))
    assert [event.step for event in away.of("evaluate")] == list(range(20))
    assert away.numbers() == sorted(away.numbers()) and bus.counts()["away"].dropped == 0
    (down,), (up,) = other.of("sink_down"), other.of("sink_up")
    assert down.reason == "the server is away: start it" and down.figures == up.figures == {"sink": "away"}
    assert [record.message for record in caplog.records] == [
        "telemetry to away fails, training goes on: the server is away: start it",
        "telemetry to away works again",
    ]


def test_what_a_dead_sink_misses_is_in_the_summary():
    dead, other = Collecting("dead", failures=10**9), Collecting("other")
    bus = Bus(dead, other, bound=8)
    for step in range(30):
        publish(bus, [step])
        wait_for(lambda step=step: len(other.of("evaluate")) == step + 1)
    counts = bus.close(timeout=0.05)
    lost = counts["dead"].dropped
    assert counts["dead"].written == 0 and lost >= 30 and counts["dead"].problem == "the server is away: start it"
    (summary,) = other.of("drops")
    assert summary.figures["sink"] == "dead" and 30 <= summary.figures["total"] <= lost
    assert dead.closed and other.closed and bus.counts() == counts


def test_events_that_a_sink_cannot_take_are_given_up_and_others_are_not():
    picky = Collecting("picky", failures=5, error=ValueError("not this one"))
    with Bus(picky) as bus:
        publish(bus, [0])
        wait_for(lambda: bus.counts()["picky"].dropped == 1)
        publish(bus, [1])
    assert [event.step for event in picky.of("evaluate")] == [1]
    assert picky.of("sink_down")[0].reason == "ValueError: not this one"


def test_one_event_that_a_sink_cannot_take_costs_no_other(caplog):
    class Picky(Collecting):
        def write(self, events):
            if any(event.step == 7 for event in events):
                raise ValueError("not this one")
            super().write(events)

    picky = Picky("picky")
    picky.open.clear()
    with Bus(picky) as bus:
        publish(bus, [0])
        assert picky.entered.wait(30)
        publish(bus, range(1, 21))
        wait_for(lambda: not bus._inbox)
        picky.open.set()
    assert [event.step for event in picky.of("evaluate")] == [step for step in range(21) if step != 7]
    assert bus.counts()["picky"].dropped == 1
    assert "1 events that it does not take were given up: ValueError: not this one" in caplog.text


def test_closing_ends_though_a_sink_hangs():
    hung, other = Collecting("hung"), Collecting("other")
    hung.open.clear()
    bus = Bus(hung, other)
    publish(bus, range(5))
    assert hung.entered.wait(30)
    counts = bus.close(timeout=0.05)
    assert counts["hung"].written == 0 and counts["hung"].dropped >= 5 and not hung.closed and other.closed
    assert other.of("drops")[0].figures["sink"] == "hung"
    hung.open.set()


def test_what_comes_after_closing_is_told_to_nobody():
    sink = Collecting()
    bus = Bus(sink)
    publish(bus, [0])
    first = bus.close()
    publish(bus, [1])
    assert bus.close() is first and len(sink.events) == 1


def test_a_run_that_fails_says_so():
    sink = Collecting()
    with pytest.raises(KeyError), Bus(sink) as bus:
        publish(bus, [7])
        raise KeyError("secret")
    assert [(event.event, event.step, event.reason) for event in sink.events[1:]] == [
        ("failed", 7, "the run ended by KeyError")
    ]


@pytest.mark.parametrize(
    ("what", "place"),
    [
        (evaluation(-1), (3, "control")),
        (Record("x", "hold"), (3, "control")),
        (7, (3, "control")),
        (None, (3, "control")),
        (Record(5, "germinate"), (5, "growth")),
    ],
    ids=str,
)
def test_a_record_that_is_none_does_not_stop_the_others(what, place, tmp_path):
    sink = Collecting()
    with Bus(sink, Jsonl(tmp_path / "history.jsonl")) as bus:
        bus.publish(replace(evaluation(3), run="control"))
        bus.publish(what)
        bus.publish(evaluation(4))
    # A notice stands where its record says, or else where the run was.
    assert [(event.event, event.step, event.run) for event in sink.events] == [
        ("evaluate", 3, "control"),
        ("malformed", *place),
        ("evaluate", 4, "growth"),
    ]
    assert sink.events == read(tmp_path)


@dataclass
class Slow:
    """A record whose figure takes its time to be known, as those of a device do."""

    step: int = 1
    event: str = "hold"
    reason: str = ""
    layer: str | None = None
    seed: int | None = None
    compiles: int = 0
    programs: tuple[str, ...] = ()
    compile_seconds: float = 0.0
    waited: float = 0.0
    run: str = "growth"
    figures: dict = field(default_factory=dict)


def test_publishing_does_not_wait_for_a_figure(tmp_path):
    known = threading.Event()

    class Figure:
        ndim = 0

        def item(self):
            assert known.wait(30)
            return 2.5

    with Bus(Jsonl(tmp_path / "history.jsonl")) as bus:
        bus.publish(Slow(figures={"loss": Figure()}))
        known.set()
    assert read(tmp_path)[0].figures == {"loss": 2.5}


def test_a_sink_of_lines_that_was_derived_from_to_look_at_events_gets_these(tmp_path):
    class Late(Jsonl):
        def write(self, events):
            super().write([event for event in events if event.step > 1])

    with Bus(Late(tmp_path / "history.jsonl")) as bus:
        publish(bus, range(4))
    assert [event.step for event in read(tmp_path)] == [2, 3]


def test_for_sinks_of_lines_nothing_is_kept_that_garbage_collection_looks_at(tmp_path):
    with Bus(Jsonl(tmp_path / "history.jsonl")) as lines, Bus(Collecting()) as events:
        for bus in (lines, events):
            bus._closing.set()  # so that nobody empties the queue
            bus._arrived.set()
            bus._thread.join()
            publish(bus, range(50))
        assert not any(map(gc.is_tracked, lines._inbox)) and all(map(gc.is_tracked, events._inbox))
    assert len(read(tmp_path)) == 50


def test_a_subscriber_that_fails_in_the_middle_is_not_told_twice():
    told, fail = [], [True]

    def listen(event):
        if event.step == 3 and fail:
            fail.pop()
            raise OSError("once")
        told.append(event.step)

    with Bus(Subscriber(listen)) as bus:
        publish(bus, range(6))
        wait_for(lambda: len(told) > 5)
    assert [step for step in told if step < 5] == list(range(5))


def test_a_subscriber_hears_every_bus_it_is_given_to():
    told = []
    listening = Subscriber(told.append)
    for _ in range(2):
        with Bus(listening) as bus:
            publish(bus, range(5))
        assert bus.counts()["subscriber"].written == 5
    assert [event.step for event in told] == [*range(5), *range(5)]


def test_what_was_published_does_not_change():
    sink, sizes, mean = Collecting(), [1, 2], np.array(0.5)
    with Bus(sink) as bus:
        bus.publish(evaluation(0, sizes=sizes, mean=mean))
        sizes.append(3)
        mean[...] = 7
    assert sink.events[0].figures == {"sizes": [1, 2], "mean": 0.5}


def test_a_run_that_no_line_can_name_stops_no_event_of_others():
    sink = Collecting()
    with Bus(sink) as bus:
        bus.publish(replace(evaluation(0, loss=object()), run="x\ud800"))
        bus.publish(Record(-1, "no step"))
        bus.publish(evaluation(1))
    assert [event.event for event in sink.events] == ["evaluate", "malformed", "evaluate"]
    assert bus.counts()[sink.name].dropped == 0
    with pytest.raises(ArgumentError, match="no Unicode"):
        Bus(run_id="x\ud800")


@pytest.mark.parametrize("bound", [0, -1])
def test_bounds_and_names_are_checked(bound):
    with pytest.raises(ArgumentError, match="at least one"):
        Bus(bound=bound)
    with pytest.raises(ArgumentError, match="a name of its own"):
        Bus(Collecting(), Collecting())


def test_errors_hold_no_login_of_a_url():
    sink = Collecting(failures=1, error=TelemetryError("http://me:pass@host refuses"))
    with Bus(sink) as bus:
        publish(bus, [0])
    assert sink.of("sink_down")[0].reason == "http://***@host refuses"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_a_process_that_never_closes_it_loses_nothing(tmp_path):
    script = """
import sys
from esper.telemetry import Bus, Jsonl
bus = Bus(Jsonl(sys.argv[1]))
for _ in range(3000):
    bus.tell("hold", "")
"""
    run(script, str(tmp_path / "history.jsonl"))
    assert len(read(tmp_path)) == 3000


def test_a_forked_child_tells_nothing_twice(tmp_path):
    script = """
import os, sys
from esper.telemetry import Bus, Jsonl
bus = Bus(Jsonl(sys.argv[1]))
bus.tell("hold", "parent")
child = os.fork()
bus.tell("hold", "child" if child == 0 else "parent")
if child == 0:
    bus.close()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
bus.close()
"""
    run(script, str(tmp_path / "history.jsonl"))
    assert [event.reason for event in read(tmp_path)] == ["parent", "parent"]


def test_two_runs_in_one_process_do_not_meet(tmp_path):
    with Bus(Jsonl(tmp_path / "a.jsonl")) as a, Bus(Jsonl(tmp_path / "b.jsonl")) as b:
        publish(a, [1])
        publish(b, [2])
    assert a.run_id != b.run_id
    assert [[event.step for event in read(tmp_path / name)] for name in ("a.jsonl", "b.jsonl")] == [[1], [2]]


def test_figures_that_change_after_they_were_told_are_told_as_they_were():
    seen, figures = Collecting(), {"a": 1}
    with Bus(seen) as bus:
        bus.tell("hold", "why", figures)
        bus.publish(Record(1, "evaluate", figures=figures))
        figures["a"] = 2
    assert [event.figures for event in seen.of("hold", "evaluate")] == [{"a": 1}] * 2
