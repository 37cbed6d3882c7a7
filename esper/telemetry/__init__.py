"""Telemetry: what happens in a run, told to whoever listens, without keeping a step waiting.

| module | holds |
|---|---|
| `events` | the events, typed and versioned, and their JSON schema |
| `convert` | records of the training loop, and lines of JSON, to events |
| `bus`, `lane` | `Bus`: numbers events, and takes them to each sink by a bounded queue and a thread |
| `sinks/` | where events go: functions, files, Redis, TensorBoard, Prometheus, OpenTelemetry |
| `reading` | histories that are files, read and followed |

Neither torch nor jax is imported here.
"""

from esper.telemetry.bus import Bus
from esper.telemetry.convert import event_of, parse
from esper.telemetry.events import SCHEMA_VERSION, Event, json_schema
from esper.telemetry.lane import Counts
from esper.telemetry.reading import follow, read
from esper.telemetry.sinks.base import Sink
from esper.telemetry.sinks.jsonl import Jsonl
from esper.telemetry.sinks.memory import Subscriber

__all__ = [
    "SCHEMA_VERSION",
    "Bus",
    "Counts",
    "Event",
    "Jsonl",
    "Sink",
    "Subscriber",
    "event_of",
    "follow",
    "json_schema",
    "parse",
    "read",
]
