"""Telemetry: what happens in a run, told to whoever listens, without keeping a step waiting.

| module | holds |
|---|---|
| `events` | the events, typed and versioned, and their JSON schema |
| `convert` | records of the training loop, and lines of JSON, to events |
| `bus`, `lane` | `Bus`: numbers events, and takes them to each sink by a bounded queue and a thread |
| `sinks/` | where events go: functions, files, Redis, TensorBoard, Prometheus, OpenTelemetry |
| `reading`, `streams` | histories in files and on Redis, read and followed |
| `state`, `seeds`, `showing` | `RunState`: what events say of a run, of its seeds, and that for a terminal |
| `assemble` | the bus that a configuration describes |
| `redis_client` | the client that everything on Redis uses |

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
from esper.telemetry.state import RunState, states
from esper.telemetry.streams import consume_redis, follow_redis

__all__ = [
    "SCHEMA_VERSION",
    "Bus",
    "Counts",
    "Event",
    "Jsonl",
    "RunState",
    "Sink",
    "Subscriber",
    "consume_redis",
    "event_of",
    "follow",
    "follow_redis",
    "json_schema",
    "parse",
    "read",
    "states",
]
