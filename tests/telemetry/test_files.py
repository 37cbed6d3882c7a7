"""Histories in files: what happens to them, and how they are read and followed."""

import os
import subprocess
import sys
import threading

import pytest

from esper.errors import EventError
from esper.telemetry import Bus, Jsonl, bus, event_of, follow, lane, read
from esper.train.history import Record
from telemetry.samples import evaluation


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("_FIRST", 0.001), ("_LONGEST", 0.01), ("_SOON", 0.001)):
        monkeypatch.setattr(lane, name, seconds)
    monkeypatch.setattr(bus, "_LINGER", 0.001)


def line(number, run_id="r"):
    return event_of(evaluation(number), run_id=run_id, sequence=number, seconds=1e9).line


def steps(events):
    return [event.step for event in events]


# ---- writing --------------------------------------------------------------------------------------------


def test_resuming_goes_on_after_the_last_whole_line(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0) + line(1) + line(2)[:40])
    with Bus(Jsonl(path, resume=True)) as bus:
        bus.publish(evaluation(9))
    assert [(event.run_id, event.sequence) for event in read(path)] == [("r", 0), ("r", 1), ("r", 2)]
    assert steps(read(path)) == [0, 1, 9]


@pytest.mark.parametrize("content", [b"", b"{torn", None])
def test_resuming_what_has_no_line_begins(tmp_path, content):
    path = tmp_path / "history.jsonl"
    if content is not None:
        path.write_bytes(content)
    with Bus(Jsonl(path, resume=True)) as bus:
        bus.publish(evaluation(9))
    assert [(event.run_id, event.sequence) for event in read(path)] == [(bus.run_id, 0)]


def test_resuming_another_kind_of_file_is_refused_and_leaves_it(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("a diary\n")
    with pytest.raises(EventError, match="is not the history of a run"):
        Jsonl(path, resume=True)
    assert path.read_text() == "a diary\n"


def test_a_long_last_line_is_found(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0) + event_of(Record(1, "hold", "x" * 300_000), run_id="r", sequence=1, seconds=1e9).line)
    assert Jsonl(path, resume=True).last.sequence == 1


def test_a_new_run_replaces_the_file_only_when_it_has_something_to_say(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0))
    with Bus(Jsonl(path)):
        pass
    assert steps(read(path)) == [0]
    with Bus(Jsonl(path, fsync=True)) as bus:
        bus.publish(evaluation(5))
    assert steps(read(path)) == [5]


def test_a_file_that_is_taken_away_is_made_again(tmp_path):
    path = tmp_path / "history.jsonl"
    sink = Jsonl(path)
    sink.write([event_of(evaluation(0), run_id="r", sequence=0, seconds=1e9)])
    path.rename(tmp_path / "moved")
    sink.write([event_of(evaluation(1), run_id="r", sequence=1, seconds=1e9)])
    sink.close()
    assert steps(read(tmp_path / "moved")) == [0] and steps(read(path)) == [1]


FULL = """
import resource, signal, sys, threading
from esper.telemetry import Bus, Jsonl, Subscriber, lane
lane._FIRST, lane._LONGEST = 0.01, 0.05
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
down, up, seen = threading.Event(), threading.Event(), []
def listen(event):
    seen.append(event)
    {"sink_down": down, "sink_up": up}.get(event.event, threading.Event()).set()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
with Bus(Jsonl(sys.argv[1]), Subscriber(listen)) as bus:
    for _ in range(100):
        bus.tell("hold", "some text")
    assert down.wait(60)
    size = open(sys.argv[1], "rb").read()
    assert size == b"" or size.endswith(b"\\n"), size[-50:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert up.wait(60)
print([event.reason for event in seen if event.event == "sink_down"][0])
"""


def test_a_disk_that_is_full_for_a_while_costs_no_event_and_tears_no_line(tmp_path):
    path = tmp_path / "history.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert "raise the limit on file sizes" in done.stdout and done.stderr.count("fails, training goes on") == 1
    found = read(path)
    assert [event.sequence for event in found] == list(range(len(found)))
    assert [event.event for event in found].count("hold") == 100


@pytest.mark.parametrize(
    ("path", "message"),
    [("/dev/full", "make room on the disk"), ("a file/history.jsonl", "a part of this path is a file")],
)
def test_what_cannot_be_written_says_what_to_do(tmp_path, path, message):
    (tmp_path / "a file").touch()
    with Bus(Jsonl(tmp_path / path), timeout=0.05) as bus:
        bus.publish(evaluation(0))
    counts = bus.counts()["jsonl"]
    assert message in counts.problem and counts.written == 0 and counts.dropped >= 1
    assert os.path.exists("/dev/full")


def test_a_place_that_can_be_written_again_gets_what_waited(tmp_path):
    blocker = tmp_path / "runs"
    blocker.touch()
    told = threading.Event()
    sink = Jsonl(blocker / "history.jsonl")
    with Bus(sink) as bus:
        bus.publish(evaluation(0))
        while not bus.counts()["jsonl"].problem:
            told.wait(0.001)
        blocker.unlink()
    assert steps(read(blocker))[0] == 0 and bus.counts()["jsonl"].problem == ""


# ---- reading --------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_left_out_and_a_torn_line_before_is_an_error(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0) + line(1)[:-1])
    assert steps(read(path)) == [0]
    path.write_bytes(line(0) + line(1)[:50] + b"\n" + line(2))
    with pytest.raises(EventError, match="line 2: no event of a run"):
        read(path)


def test_a_newer_major_version_is_refused_with_its_line(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0) + line(1).replace(b'"schema_version":1', b'"schema_version":2'))
    with pytest.raises(EventError, match=r"line 2: .*schema version 2, and this esper reads up to 1"):
        read(path)


def test_histories_of_before_are_read(tmp_path):
    (tmp_path / "history.jsonl").write_text("".join(evaluation(step).to_json() + "\n" for step in range(3)))
    found = read(tmp_path)
    assert [(event.run_id, event.sequence) for event in found] == [(tmp_path.name, number) for number in range(3)]


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing.jsonl")


# ---- following ------------------------------------------------------------------------------------------


def ended(*paths, **options):
    stop = threading.Event()
    stop.set()
    return list(follow(*paths, stop=stop, **options))


def test_following_gives_lines_as_they_are_completed(tmp_path):
    path = tmp_path / "history.jsonl"
    events = follow(path, poll=0.001)
    with path.open("wb", buffering=0) as file:
        file.write(line(0) + line(1)[:20])
        assert next(events).step == 0
        file.write(line(1)[20:] + line(2))
        assert (next(events).step, next(events).step) == (1, 2)
    events.close()


def test_following_begins_anew_with_a_file_that_is_replaced(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0) + line(1))
    events = follow(path, poll=0.001)
    assert (next(events).step, next(events).step) == (0, 1)
    path.unlink()
    path.write_bytes(line(7, "another"))
    assert next(events).run_id == "another"
    events.close()


def test_following_from_the_end_leaves_out_what_was_there(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0) + line(1))
    events, seen = follow(path, beginning=False, poll=0.001), []
    reader = threading.Thread(target=lambda: seen.append(next(events)))
    reader.start()
    pause = threading.Event()
    with path.open("ab", buffering=0) as file:
        while reader.is_alive():  # until it has looked for where the end is
            file.write(line(2))
            pause.wait(0.01)
    events.close()
    assert steps(seen) == [2]


def test_following_a_folder_finds_its_runs_as_they_come(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "history.jsonl").write_bytes(line(0, "a"))
    events = follow(tmp_path, tmp_path / "later", poll=0.001)
    assert next(events).run_id == "a"
    (tmp_path / "b" / "history.jsonl").write_bytes(line(1, "b"))
    assert next(events).run_id == "b"
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "history.jsonl").write_bytes(line(2, "later"))
    assert next(events).run_id == "later"
    events.close()
    assert sorted(event.run_id for event in ended(tmp_path)) == ["a", "b", "later"]


def test_runs_without_a_name_in_folders_of_one_name_are_told_apart(tmp_path):
    for place, count in (("x/small", 2), ("y/small", 3)):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "history.jsonl").write_text("".join(Record(at, "hold").to_json() + "\n" for at in range(count)))
    found = ended(tmp_path / "x" / "small", tmp_path / "y" / "small")
    assert [(event.run_id, event.sequence) for event in found] == [
        *(("small", at) for at in range(2)),
        *(("y/small", at) for at in range(3)),
    ]


def test_a_run_is_followed_to_its_last_event_while_it_is_written(tmp_path):
    path, stop, seen = tmp_path / "history.jsonl", threading.Event(), []
    reader = threading.Thread(target=lambda: seen.extend(follow(path, stop=stop, poll=0.001)))
    reader.start()
    with Bus(Jsonl(path), bound=10_000) as bus:
        for step in range(2000):
            bus.publish(evaluation(step))
    stop.set()
    reader.join()
    assert steps(seen) == list(range(2000))


def test_a_torn_line_that_a_resumed_run_takes_back_is_no_part_of_the_next(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line(0) + line(1)[:40])
    events = follow(path, poll=0.001)
    assert next(events).step == 0
    with Bus(Jsonl(path, resume=True)) as bus:
        bus.publish(evaluation(9))
    assert next(events).step == 9
    events.close()
