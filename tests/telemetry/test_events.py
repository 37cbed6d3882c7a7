"""Events: a typed, versioned schema that old and newer lines fit."""

import json
import math
import random
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from pydantic import ValidationError

from esper.errors import EventError
from esper.lifecycle import SeedLifecycleState
from esper.telemetry import event_of, json_schema, parse
from esper.telemetry.convert import proper, proper_event, proper_line, stamped
from esper.telemetry.events import KINDS, Notice, Other, Seed
from esper.train.history import Record
from telemetry.samples import ODD, record

STAMP = {"run_id": "r", "sequence": 4, "seconds": 1.8e9 + 0.123456}


def of(told):
    return event_of(told, **STAMP)


@pytest.mark.parametrize("kind", [*KINDS, "a_kind_of_tomorrow"])
def test_an_event_is_itself_after_json(kind):
    event = of(record(kind))
    assert type(event) is KINDS.get(kind, Other)
    assert parse(event.line) == event and parse(event.line).line == event.line
    assert event.line.count(b"\n") == 1
    assert json.loads(event.line)["time"] == "2027-01-15T08:00:00.123456Z"


def test_random_events_are_themselves_after_json():
    draw = random.Random(0)
    values = [0, -1, 2**63, 1.5, -0.0, 1e-320, math.nan, True, "", ODD, [1, 2.5, "x"]]
    for _ in range(500):
        figures = {draw.choice([ODD, "loss", ""]) + str(at): draw.choice(values) for at in range(draw.randrange(6))}
        told = Record(
            draw.randrange(10**9), draw.choice([*KINDS]), draw.choice(["", ODD]), draw.choice(["", "a.0"]),
            draw.randrange(4), figures, draw.randrange(9), (ODD,) * draw.randrange(3), draw.random(), 0.5, ODD,
        )  # fmt: skip
        event = of(told)
        assert parse(event.line).line == event.line
        back = parse(event.line)
        assert all(getattr(back, name) == value for name, value in vars(told).items() if name != "figures")
        assert {name: repr(value) for name, value in back.figures.items()} == {
            name: repr(value) for name, value in figures.items()
        }


@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_no_validation_is_what_validation_makes(kind):
    told = replace(record(kind), figures={"a": math.nan, ODD: "x", "c": True, "d": 2, "e": -math.inf}, reason=ODD)
    fields, stamp = proper(told), stamped("r", 4, 0, STAMP["seconds"])
    assert proper_line(stamp, fields) == of(told).line
    event = proper_event(stamp, fields)
    assert type(event) is KINDS[kind] and event.line == of(told).line and repr(event) == repr(of(told))
    assert type(event.time) is type(of(told).time) and event.time == of(told).time


@pytest.mark.parametrize(
    "changed",
    [
        {"step": np.int64(3)}, {"step": True}, {"step": -1}, {"event": "a_kind_of_tomorrow"}, {"event": ["x"]},
        {"layer": None}, {"seed": None}, {"seed": 1.0}, {"figures": {"a": np.float64(1)}}, {"figures": {"a": (1, 2)}},
        {"figures": {1: 2}}, {"figures": None}, {"programs": (1,)}, {"programs": ["f"]}, {"waited": 0}, {"run": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_of_the_very_types_is_validated(changed):
    assert proper(record("germinate")) is not None and proper(replace(record("germinate"), **changed)) is None


def test_every_state_a_seed_can_reach_is_a_seeds_event():
    assert all(KINDS[state.name.lower()] is Seed for state in SeedLifecycleState)


def test_numbers_of_numpy_and_tuples_become_plain():
    told = Record(np.int64(3), "germinate", "x", "a", np.int32(0), {"a": np.float32(0.5), "b": (1, 2), "c": None})
    assert of(told).figures == {"a": 0.5, "b": [1, 2], "c": "None"} or math.isnan(of(told).figures["c"])
    assert (of(told).step, of(told).seed) == (3, 0)


LARGE = 10**5000  # Python writes it, and refuses to read it


def test_numbers_that_no_float_reaches_are_not_finite():
    """As lines they could not be read again, and whoever draws figures needs floats."""
    told = Record(3, "evaluate", figures={"a": LARGE, "b": -LARGE, "c": 2**1022, "d": [1, LARGE]})
    event = of(told)
    assert event.figures == {"a": math.inf, "b": -math.inf, "c": 2**1022, "d": [1, math.inf]}
    fields = proper(replace(told, figures={"a": 10**310}))
    with pytest.raises(ValueError, match="too large"):
        proper_line(stamped("", 0, 0, 0.0), fields)
    assert parse('{"step": 1, "event": "evaluate", "figures": {"a": 1%s}}' % ("0" * 400)).figures == {"a": math.inf}
    assert proper(replace(told, step=LARGE)) is None and of(replace(told, step=LARGE)).event == "malformed"
    for name in ("step", "sequence", "part"):
        with pytest.raises(EventError, match=name):
            parse(f'{{"step": 1, "event": "hold", "{name}": 1{"0" * 400}}}')


def test_a_time_that_is_none_in_utc_is_no_event():
    with pytest.raises(EventError, match=r"time: .*no such time in UTC"):
        parse('{"step": 1, "event": "hold", "time": "0001-01-01T00:00:00+14:00"}')


@dataclass
class Broken:
    step: int = 0
    event: str = "germinate"  # without a layer


@pytest.mark.parametrize("told", [Broken(), Record(-1, "start"), Record(1, "germinate"), Record(1, ["x"])], ids=repr)
def test_what_is_no_record_becomes_a_notice(told):
    event = of(told)
    assert isinstance(event, Notice) and event.event == "malformed" and "is no event" in event.reason
    assert event.sequence == 4 and parse(event.line) == event


def test_events_are_frozen():
    with pytest.raises(ValidationError):
        of(record("start")).step = 5


def test_lines_without_an_envelope_are_read():
    event = parse(Record(2, "hold", "why", figures={"a": math.nan}).to_json(), run_id="folder", sequence=7)
    assert (event.run_id, event.sequence, event.time, event.reason) == ("folder", 7, None, "why")
    assert math.isnan(event.figures["a"])


def test_what_a_newer_minor_version_adds_is_passed_over_or_kept():
    known = parse('{"schema_version": 1, "step": 1, "event": "hold", "colour": "red"}')
    assert not hasattr(known, "colour")
    other = parse('{"schema_version": 1, "step": 1, "event": "pruned", "colour": "red", "nested": {"a": [1]}}')
    assert isinstance(other, Other) and other.colour == "red"
    assert json.loads(other.line)["nested"] == {"a": [1]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema_version": 2, "step": 1, "event": "hold"}', "schema version 2, and this esper reads up to 1"),
        ('{"schema_version": "1", "step": 1, "event": "hold"}', "schema version '1'"),
        ('{"schema_version": true, "step": 1, "event": "hold"}', "schema version True"),
        ('{"step": 1}', 'no object with an "event"'),
        ('{"step": 1, "event": 3}', 'no object with an "event"'),
        ("[]", 'no object with an "event"'),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (b"\xff", "no JSON"),
        ('{"event": "hold"}', "step: Field required"),
        ('{"event": "culled", "step": 1}', "layer: "),
        ('{"event": "hold", "step": -1}', "step: "),
        ('{"event": "hold", "step": 1, "time": "2026-01-01T00:00:00"}', "time: "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_event_is_refused(line, message):
    with pytest.raises(EventError) as refused:
        parse(line)
    assert message in str(refused.value)


def test_the_schema_describes_what_is_written():
    schema = json_schema()
    named = {name: described["properties"] for described in schema["$defs"].values() for name in _names(described)}
    assert named.keys() == KINDS.keys()
    for kind in KINDS:
        written = json.loads(of(record(kind)).line)
        assert written.keys() == named[kind].keys()
        assert all(described.get("description") for described in named[kind].values())
    assert json.loads(json.dumps(schema)) == schema


def _names(described):
    event = described["properties"]["event"]
    return event.get("enum") or ([event["const"]] if "const" in event else [])


def test_it_needs_neither_torch_nor_jax():
    script = "import sys, esper.telemetry, esper.telemetry.showing, esper.telemetry.assemble\n"
    script += "print({'torch', 'jax', 'flax', 'redis', 'tensorboard', 'opentelemetry'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
