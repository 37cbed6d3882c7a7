"""What every channel keeps to; a check takes a function from an inbox's name to a new end."""

import threading
import time

from esper.control.channel import KEPT
from esper.control.seal import MAX_BYTES

WHOLE = bytes(range(256)) * 64


def messages_arrive_whole_and_in_order(end):
    ours, theirs = end("controller"), end("run-1")
    sent = [b"", WHOLE, b"x" * MAX_BYTES, *(b"%d" % number for number in range(20))]
    for message in sent:
        theirs.send("controller", message)
    assert [ours.receive(5) for _ in sent] == sent
    assert ours.receive(0) is None and theirs.receive(0) is None


def an_inbox_is_read_by_nobody_else(end):
    one, other, controller = end("run-1"), end("run-2"), end("controller")
    controller.send("run-2", b"2")
    controller.send("run-1", b"1")
    assert (one.receive(5), one.receive(0), other.receive(5), other.receive(0)) == (b"1", None, b"2", None)


def what_was_sent_before_is_there(end):
    end("run-1").send("controller", b"early")
    assert end("controller").receive(5) == b"early"


def a_message_is_received_once(end):
    """Several controllers share an inbox."""
    sender, got = end("run-1"), []

    def receive(own):
        while (message := own.receive(0.2)) is not None:
            got.append(message)

    sent = [b"%d" % number for number in range(60)]
    for message in sent:
        sender.send("controller", message)
    threads = [threading.Thread(target=receive, args=(end("controller"),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(sent)


def who_waits_is_woken(end):
    ours, theirs = end("controller"), end("run-1")
    later = threading.Timer(0.1, theirs.send, ("controller", b"now"))
    later.start()
    assert ours.receive(60) == b"now"
    later.join()


def nothing_is_waited_for_for_ever(end):
    began = time.monotonic()
    assert end("controller").receive(0.05) is None
    assert time.monotonic() - began >= 0.04


def an_inbox_is_bounded(end):
    sender, ours = end("run-1"), end("controller")
    for number in range(KEPT + 200):
        sender.send("controller", b"%d" % number)
    held = []
    while (message := ours.receive(0)) is not None:
        held.append(int(message))
    assert len(held) < KEPT + 150 and held == list(range(KEPT + 200))[-len(held) :]


def what_is_asked_about_comes_first(end):
    """The others come in their order."""
    sender, ours = end("controller"), end("run-1")
    for message in (b"1", b"2"):
        sender.send("run-1", message)
    sender.send("run-1", b"wanted", "a" * 32)
    sender.send("run-1", b"3")
    assert [ours.receive(5, "a" * 32) for _ in range(4)] == [b"wanted", b"1", b"2", b"3"]
    assert ours.receive(0, "a" * 32) is None


def an_answer_that_is_late_is_received_all_the_same(end):
    sender, ours = end("controller"), end("run-1")
    assert ours.receive(0, "a" * 32) is None
    sender.send("run-1", b"late", "a" * 32)
    sender.send("run-1", b"wanted", "b" * 32)
    assert [ours.receive(5, "b" * 32) for _ in range(2)] == [b"wanted", b"late"]
    assert ours.receive(0, "b" * 32) is None


CHECKS = (
    messages_arrive_whole_and_in_order,
    an_inbox_is_read_by_nobody_else,
    what_was_sent_before_is_there,
    a_message_is_received_once,
    who_waits_is_woken,
    nothing_is_waited_for_for_ever,
    an_inbox_is_bounded,
    what_is_asked_about_comes_first,
    an_answer_that_is_late_is_received_all_the_same,
)
