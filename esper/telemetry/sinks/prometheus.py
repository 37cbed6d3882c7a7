"""The latest figures, for Prometheus to ask for."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from esper.errors import MissingExtraError, TelemetryError
from esper.telemetry.events import Event
from esper.telemetry.sinks.base import Sink
from esper.telemetry.state import Key, RunState, latest, states

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric

_LOG = logging.getLogger("esper.telemetry")
_RUN = ("run_id", "run")
_SEED = (*_RUN, "layer", "seed")
_GAUGES = {
    "esper_step": ("Training steps done.", _RUN),
    "esper_last_event_seconds": ("When the last event happened, since the epoch.", _RUN),
    "esper_figure": ("The latest value of a figure of evaluations.", (*_RUN, "name")),
    "esper_seed_alpha": ("How far a seed's kernel is blended in, as far as evaluations told.", _SEED),
    "esper_seed_state": ("1 for the state a seed is in.", (*_SEED, "state")),
    "esper_dropped_events": ("Events that a sink never got.", ("run_id", "sink")),
}
_COUNTERS = {
    "esper_events": ("Events so far.", (*_RUN, "event")),
    "esper_compiles": ("XLA compiles so far.", _RUN),
}

Samples = dict[tuple[str, ...], float]
"""The name of a figure and its labels, and its value."""


class Prometheus(Sink):
    """An HTTP endpoint with the latest figures as text, in a registry of its own.

    The figures say what a model learns and how well, to everyone who reaches the address: it is the loopback unless
    another is asked for.

    Args:
        port: To listen on; 0: one that is free, which the log says.
        host: Address to listen on.
        before: What a run that goes on has told before.

    Raises:
        MissingExtraError: The package `prometheus_client` is not installed.
    """

    name = "prometheus"

    def __init__(self, port: int = 0, host: str = "127.0.0.1", before: Iterable[Event] = ()) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            raise MissingExtraError("Prometheus", "prometheus-client", "prometheus") from error
        self._host, self._asked = host, port
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._states: Mapping[Key, RunState] = states(before)
        self._events = Counter[tuple[str, str, str]]()
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int | None:
        """The port it listens on; None before the first event, and when it is closed."""
        return self._server.server_port if self._server else None

    def write(self, events: Sequence[Event]) -> None:
        """Takes over the events' figures, and listens from the first time on."""
        if self._server is None:
            self._listen()
        self._states = states(events, self._states)
        # Another one, since the server's thread may be reading this one.
        self._events = self._events + Counter((event.run_id, event.run, event.event) for event in events)

    def collect(self) -> Iterator[Metric]:
        """The figures as they are now; the registry asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        samples: Samples = {("esper_events", *told): count for told, count in self._events.items()}
        for key, state in self._states.items():
            samples |= _samples(key, state)
        for kind, families in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, (about, labels) in families.items():
                family = kind(name, about, labels=labels)
                for (of, *values), value in samples.items():
                    if of == name:
                        family.add_metric(values, value)
                yield family

    def close(self) -> None:
        """Stops listening, and frees the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def _listen(self) -> None:
        from prometheus_client import start_http_server

        try:
            self._server, self._thread = start_http_server(self._asked, self._host, self._registry)
        except OSError as error:
            raise TelemetryError(
                f"nothing can listen on {self._host}:{self._asked}: {error.strerror or error}; "
                "give another prometheus_port or prometheus_host, or end what listens there"
            ) from error
        host = f"[{self._host}]" if ":" in self._host else self._host
        _LOG.info("Prometheus can ask for figures at http://%s:%d/metrics", host, self._server.server_port)


def _samples(key: Key, state: RunState) -> Samples:
    """What is known of a run."""
    found: Samples = {("esper_step", *key): state.step, ("esper_compiles", *key): state.compiles}
    if state.last:
        found["esper_last_event_seconds", *key] = state.last.timestamp()
    for name, curve in state.curves.items():
        found["esper_figure", *key, name] = latest(curve)
    for (layer, number), seed in state.seeds.items():
        place = (*key, layer, str(number))
        found["esper_seed_state", *place, seed.state] = 1
        if seed.alpha is not None:
            found["esper_seed_alpha", *place] = seed.alpha
    for sink, dropped in state.dropped.items():
        found["esper_dropped_events", key[0], sink] = dropped
    return found
