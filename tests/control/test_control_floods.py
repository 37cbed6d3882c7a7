"""Folders full of what anybody may have put there: answers are found, nothing takes long, and nothing is raised."""

import errno
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from control.runs import GROWTH, KEYS, seen, serving
from esper.control import Controller, FolderChannel, Keys, RemotePolicy, folder, serve
from esper.control.channel import CONTROLLER, KEPT, too_large
from esper.control.exchange import DECIDE
from esper.control.messages import Question, nonce, now, written
from esper.control.service import _arrived
from esper.errors import ChannelError
from esper.growth.tamiyo import Tamiyo

MANY, PATIENT = 3 * KEPT, 60.0


def files(inbox, name="{:020d}-x.msg", count=MANY):
    for number in range(count):
        (inbox / name.format(number)).touch()


def huge(inbox):
    for number in range(300):
        with (inbox / f"{number}.msg").open("wb") as file:
            file.truncate(2**40)


def others(inbox):
    """What can be neither read nor removed as a message is."""
    for number in range(300):
        (inbox / f"{number}-folder.msg").mkdir()
        (inbox / f"{number}-link.msg").symlink_to("/etc/hostname")
        (inbox / f"{number}-loop.msg").symlink_to(f"{number}-loop.msg")
        os.mkfifo(inbox / f"{number}-fifo.msg")
        (inbox / f"{number}.part").touch()


JUNK = {
    "early": files,
    "late": lambda inbox: files(inbox, "9{:019d}-x.msg"),
    "no messages": lambda inbox: files(inbox, "{}"),
    "huge": huge,
    "others": others,
}


@contextmanager
def ends(place, *inboxes):
    held = [FolderChannel(place, inbox) for inbox in inboxes]
    try:
        yield held
    finally:
        for end in held:
            end.close()


def test_a_folder_in_the_place_of_an_answer_costs_nothing_and_makes_way(tmp_path):
    with ends(tmp_path, "run", CONTROLLER) as (run, controller):
        (tmp_path / "run" / "nonce.msg").mkdir(parents=True)
        before = len(os.listdir("/proc/self/fd"))
        assert all(run.receive(0, "nonce") is None for _ in range(50))
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        controller.send("run", b"the answer", "nonce")
        assert run.receive(1, "nonce") == b"the answer"


@contextmanager
def serving_in(place):
    with ends(place, CONTROLLER) as (own,), serving(own):
        yield


def decided(place, times=1, **changes):
    """Who decides, and the seconds that each decision takes."""
    with ends(place, "run-1") as (own,):
        policy = RemotePolicy(own, KEYS, local=Tamiyo(GROWTH), run="run-1", patience=99, **changes)
        memory, who, seconds = policy.start(), [], []
        for number in range(times):
            began = time.monotonic()
            actions, memory = policy(seen(step=10 + 5 * number), memory)
            seconds.append(time.monotonic() - began)
            who += [a.reason.split(" decides")[0] for a in actions if getattr(a, "event", "") == "remote"]
    return who, seconds


def flooded(place, junk):
    for inbox in (place / CONTROLLER, place / "run-1"):
        inbox.mkdir()
        junk(inbox)


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_an_answer_is_found_among_whatever_lies_there(junk, tmp_path):
    flooded(tmp_path, junk)
    with serving_in(tmp_path):
        assert decided(tmp_path, timeout=PATIENT)[0] == ["the controller"]


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_nobody_is_waited_for_longer_because_of_what_lies_there(junk, tmp_path):
    flooded(tmp_path, junk)
    who, seconds = decided(tmp_path, times=2, timeout=1.0)
    assert who == ["the local default"] * 2 and max(seconds) < 5


@pytest.mark.parametrize(
    ("call", "code"), [("os.open", errno.EACCES), ("os.open", errno.EIO), ("pathlib.Path.unlink", errno.EPERM)]
)
def test_what_cannot_be_read_or_removed_is_passed_by(call, code, tmp_path, monkeypatch):
    """As in a folder whose files only their owners may touch."""
    real = Path.unlink if call.endswith("unlink") else os.open

    def refused(path, *given, **named):
        if str(path).endswith("-x.msg"):
            raise OSError(code, os.strerror(code))
        return real(path, *given, **named)

    flooded(tmp_path, lambda inbox: files(inbox, count=300))
    monkeypatch.setattr(call, refused)
    with serving_in(tmp_path):
        assert decided(tmp_path, times=3, timeout=PATIENT)[0] == ["the controller"] * 3


def test_what_goes_while_it_is_looked_at_is_passed_by(tmp_path, monkeypatch):
    real = os.open

    def late(path, *given, **named):
        if str(path).endswith("-x.msg"):
            os.unlink(path)
        return real(path, *given, **named)

    flooded(tmp_path, lambda inbox: files(inbox, count=300))
    monkeypatch.setattr("os.open", late)
    with serving_in(tmp_path):
        assert decided(tmp_path, timeout=PATIENT)[0] == ["the controller"]


def test_what_was_put_where_the_answer_is_looked_for_makes_room_for_it(tmp_path):
    with ends(tmp_path, CONTROLLER, "run-1") as (controller, own):
        for put in (lambda file: file.write_bytes(b"x"), lambda file: file.symlink_to("/dev/zero"), os.mkfifo):
            (tmp_path / "run-1").mkdir(exist_ok=True)
            put(tmp_path / "run-1" / ("a" * 32 + ".msg"))
            controller.send("run-1", b"wanted", "a" * 32)
            assert own.receive(0, "a" * 32) == b"wanted"


def test_a_look_is_gone_on_with_where_it_was_left(tmp_path, monkeypatch):
    """No number of files hides a message for good, though a look has time for a few of them only."""
    monkeypatch.setattr(folder, "_LOOK", 0)
    monkeypatch.setattr(folder, "KEPT", 1)
    with ends(tmp_path, CONTROLLER) as (own,):
        own.send(CONTROLLER, b"wanted")
        for number in range(300):
            (tmp_path / CONTROLLER / f"{number}.msg").mkdir()
        assert own.receive(PATIENT) == b"wanted"


def test_of_too_many_the_newest_are_received_first_whatever_they_are_called(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_LOOK", PATIENT)
    with ends(tmp_path, CONTROLLER) as (own,):
        (tmp_path / CONTROLLER).mkdir()
        files(tmp_path / CONTROLLER, "9{:019d}-x.msg", count=KEPT + 500)
        time.sleep(0.05)  # the file system's clock may be a coarse one
        own.send(CONTROLLER, b"wanted")
        held = []
        while (message := own.receive(0)) is not None:
            held.append(message)
        assert held.index(b"wanted") == KEPT - 1 < len(held) - 400


def test_sending_looks_at_few_files_and_removes_fewer(tmp_path, monkeypatch):
    real, seen_entries = os.scandir, []

    @contextmanager
    def counted(place):
        with real(place) as entries:
            yield (seen_entries.append(entry.name) or entry for entry in entries)

    with ends(tmp_path, "run-1") as (own,):
        (tmp_path / CONTROLLER).mkdir()
        files(tmp_path / CONTROLLER)
        monkeypatch.setattr("os.scandir", counted)
        own.send(CONTROLLER, b"message")
        monkeypatch.undo()
    assert len(seen_entries) <= 2 * KEPT
    assert MANY - 20 < len(os.listdir(tmp_path / CONTROLLER)) <= MANY


def test_nothing_is_read_of_what_is_too_large(tmp_path):
    with ends(tmp_path, CONTROLLER) as (own,):
        (tmp_path / CONTROLLER).mkdir()
        (tmp_path / CONTROLLER / "0.msg").write_bytes(b"x" * len(too_large()))
        assert own.receive(0) == too_large()


# ---- the controller -------------------------------------------------------------------------------------


def asking(keys=KEYS):
    given = {"run": "run-1", "sequence": 1, "nonce": nonce(), "time": now(), "observation": seen()}
    return written(Question(**given), DECIDE[0], keys)


class Endless:
    """A channel that is filled faster than it is emptied, with a question at first; or that breaks then."""

    def __init__(self, stop, breaks=False):
        self.stop, self.breaks, self.received, self.answered = stop, breaks, 0, []

    def receive(self, timeout, about=""):
        self.received += 1
        if self.received == 1:
            return asking()
        if self.breaks:
            raise ChannelError("gone")
        time.sleep(0.01)
        return b"nonsense"

    def send(self, to, message, about=""):
        self.answered.append(to)
        self.stop.set()


@pytest.mark.parametrize("breaks", [False, True])
def test_a_run_is_answered_though_messages_never_end(breaks):
    stop = threading.Event()
    channel = Endless(stop, breaks)
    serve(Controller(Tamiyo(GROWTH), KEYS), channel, stop)
    assert channel.answered == ["run-1"] and channel.received < KEPT / 2


def test_messages_are_not_gathered_before_they_are_looked_at():
    """Each may have 4 MiB."""
    held, controller = [], Controller(Tamiyo(GROWTH), KEYS)

    class One:
        def receive(self, timeout, about=""):
            held.append(len(looked))
            return b"nonsense" if len(held) < 20 else None

    looked, real = [], controller._read
    object.__setattr__(controller, "_read", lambda message: looked.append(message) or real(message))
    assert controller.questions(_arrived(One(), 0)) == [] and held == list(range(20))


def test_a_flood_is_no_flood_of_lines(caplog):
    messages = [asking(Keys(f"k{number}", {f"k{number}": bytes(32)})) for number in range(2, 50)]
    assert Controller(Tamiyo(GROWTH), KEYS).questions(messages) == []
    assert len(caplog.records) == 1 and "messages: 48, key" in caplog.text
