"""Records and sinks that the tests share."""

import threading
from dataclasses import replace

from esper.errors import TelemetryError
from esper.telemetry import Sink
from esper.telemetry.events import KINDS
from esper.train.history import Record

SEED = Record(3, "germinate", "it stopped improving", "encoder.0", 1, {"blueprint": "mlp", "width": 4, "alpha": 0.5})
ODD = 'a\nb\u2028c\x85d "quoted" \\ \x00 ä 🌱'


def record(event, step=3):
    """A record of each kind, with everything a record can have."""
    seen = replace(SEED, step=step, event=event, compiles=2, programs=("f", "g"), compile_seconds=1.25, waited=0.5)
    return (
        seen
        if event in KINDS and "layer" in KINDS[event].model_json_schema()["required"]
        else replace(seen, layer=None, seed=None)
    )


def evaluation(step, **figures):
    return Record(step, "evaluate", figures=figures or {"train_loss": 0.5**step})


class Collecting(Sink):
    """Keeps events; fails as often as it is told, and blocks while it is told."""

    def __init__(self, name="collecting", failures=0, error=None):
        self.name, self.failures = name, failures
        self.error = error or TelemetryError("the server is away: start it")
        self.events, self.tries, self.closed = [], 0, False
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def write(self, events):
        self.entered.set()
        self.open.wait()
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise self.error
        self.events += events

    def close(self):
        self.closed = True

    def of(self, *kinds):
        return [event for event in self.events if event.event in kinds]

    def numbers(self):
        return [event.sequence for event in self.events]
