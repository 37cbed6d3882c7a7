"""What every place that keeps events has to do. A module that imports these tests has a fixture `place`.

A place has `sink()`, `again()` (a sink that goes on after what is there, or None) and `events()`, what was kept.
"""

import math
import threading

from esper.telemetry import Bus
from esper.telemetry.events import KINDS
from telemetry.samples import ODD, evaluation, record


def test_events_come_in_order_and_none_is_lost(place):
    with Bus(place.sink(), bound=100_000) as bus:
        threads = [
            threading.Thread(target=lambda: [bus.publish(evaluation(step)) for step in range(700)]) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bus.counts()[place.name].written == 2100 and bus.counts()[place.name].dropped == 0
    found = place.events()
    assert [event.sequence for event in found] == list(range(2100))
    assert {event.run_id for event in found} == {bus.run_id}
    assert all(event.time.utcoffset().total_seconds() == 0 for event in found)
    assert [event.time for event in found] == sorted(event.time for event in found)


def test_every_kind_of_event_comes_back_as_it_was(place):
    with Bus(place.sink()) as bus:
        for kind in [*KINDS, "a_kind_of_tomorrow"]:
            bus.publish(record(kind))
    found = place.events()
    assert [event.event for event in found] == [*KINDS, "a_kind_of_tomorrow"]
    for event in found:
        told = record(event.event)
        assert all(getattr(event, name) == value for name, value in vars(told).items())


def test_figures_that_are_not_finite_come_back_as_such(place):
    with Bus(place.sink()) as bus:
        bus.publish(evaluation(1, a=math.nan, b=math.inf, c=-math.inf, d=1e308, e=2**70, f=True, g="x"))
    figures = place.events()[0].figures
    assert math.isnan(figures["a"]) and not any(math.isfinite(figures[name]) for name in "bc")
    assert [figures[name] for name in "defg"] == [1e308, 2**70, True, "x"] and figures["f"] is True


def test_any_text_comes_back(place):
    with Bus(place.sink()) as bus:
        bus.tell("hold", ODD)
        bus.tell("hold", "half a pair: \ud800")
    assert [event.reason for event in place.events()] == [ODD, "half a pair: \\ud800"]


def test_a_second_run_goes_on_after_the_first(place):
    with Bus(place.sink(), run_id="one") as bus:
        bus.publish(evaluation(1))
    again = place.again()
    if again is None:
        return
    with Bus(again) as bus:
        bus.publish(evaluation(2))
    assert [(event.run_id, event.sequence, event.step) for event in place.events()] == [("one", 0, 1), ("one", 1, 2)]
