"""A thread beside training changes what belongs to the process only while it works."""

import gc
import sys
import threading

import pytest

from esper.train.unobtrusive import unobtrusive


def seen():
    return gc.isenabled(), sys.getswitchinterval()


def aside(work):
    """What a thread under `unobtrusive` saw in its work, which may wait for events."""
    found = []

    def run():
        with unobtrusive():
            found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_the_collector_rests_and_the_interpreter_changes_hands_often_only_meanwhile():
    before = seen()
    thread, found = aside(seen)
    thread.join()
    assert found == [(False, pytest.approx(0.0005))] and seen() == before


def test_the_last_of_several_threads_puts_everything_back():
    before, first, second = seen(), threading.Event(), threading.Event()
    one, _ = aside(first.wait)
    two, _ = aside(second.wait)
    first.set()
    one.join()
    assert seen() == (False, pytest.approx(0.0005))
    second.set()
    two.join()
    assert seen() == before


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        thread, _ = aside(seen)
        thread.join()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_frozen_stays_frozen():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        thread, _ = aside(seen)
        thread.join()
        assert frozen > 0 and gc.get_freeze_count() >= frozen * 0.9 and gc.isenabled()
    finally:
        gc.unfreeze()


def test_after_an_error_all_is_as_before():
    before, raised = seen(), []

    def run():
        with pytest.raises(ValueError, match="wrong"), unobtrusive():
            raise ValueError("wrong")
        raised.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert raised and seen() == before
