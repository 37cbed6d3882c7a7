"""Runs under remote control: the same run bit for bit, without a controller too, and whatever else arrives."""

import pytest

from control.runs import (
    GROWTH,
    OTHER,
    alone,
    bit_equal,
    controlled,
    remote,
    run,
    told,
)
from esper.control import Keys
from esper.errors import ChannelError
from esper.growth.tamiyo import Tamiyo

ASK, DECIDE, MEASURE = "run asks to decide", "controller decides", "controller asks to measure"
STRANGER = Keys("k1", {"k1": bytes(32)})


def test_the_run_to_compare_with_grows():
    events = {record.event for record in alone().records}
    assert {"germinate", "grafting", "culled"} & events >= {"germinate"}


@pytest.mark.parametrize("measure", ["local", "remote"])
def test_a_remote_tamiyo_gives_the_same_run_bit_for_bit(measure):
    found = run(remote(controlled(), measure=measure))
    assert bit_equal(found, alone())
    assert told(found, "remote")[0] == "the controller decides on observation 1" and not told(found, "rejected")


def test_another_policy_decides_otherwise():
    found = run(remote(controlled(Tamiyo(OTHER)), measure="remote"))
    assert bit_equal(found, run(growth=GROWTH, policy=Tamiyo(OTHER))) and not bit_equal(found, alone())


def test_without_a_controller_the_local_default_decides():
    found = run(remote(lambda message: []))
    assert bit_equal(found, alone())
    assert told(found, "remote")[0].startswith("the local default decides: no answer within 2 s")


def test_a_channel_that_does_not_work_is_no_reason_to_stop():
    def broken(message):
        raise ChannelError("nobody there")

    found = run(remote(broken))
    assert bit_equal(found, alone()) and "nobody there" in told(found, "remote")[0]
