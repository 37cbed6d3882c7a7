"""The latest figures, for Prometheus to ask for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esper.errors import MissingExtraError, TelemetryError
from esper.telemetry.events import Event, Notice, Seed
from esper.telemetry.sinks.base import Sink

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_STATES = {"germinate": "training", "remove": "none"}  # events that are not named after the state they lead to
_RUN = ("run_id", "run")


class Prometheus(Sink):
    """An HTTP endpoint with the latest figures as text, in a registry of its own.

    The figures say what a model learns and how well, to everyone who reaches the address: it is the loopback unless
    another is asked for.

    Args:
        port: To listen on; 0: one that is free.
        host: Address to listen on.

    Raises:
        MissingExtraError: The package `prometheus_client` is not installed.
    """

    name = "prometheus"

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge
        except ImportError as error:
            raise MissingExtraError("Prometheus", "prometheus-client", "prometheus") from error
        self._host, self._asked = host, port
        self._registry = CollectorRegistry()
        seed = (*_RUN, "layer", "seed")
        own: dict[str, Any] = {"registry": self._registry}
        self._step = Gauge("esper_step", "Training steps done.", _RUN, **own)
        self._time = Gauge("esper_last_event_seconds", "When the last event happened, since the epoch.", _RUN, **own)
        self._figure = Gauge("esper_figure", "The latest value of a figure of evaluations.", (*_RUN, "name"), **own)
        self._alpha = Gauge("esper_seed_alpha", "How far a seed's kernel is blended in, as decided.", seed, **own)
        self._state = Gauge("esper_seed_state", "1 for the state a seed is in.", (*seed, "state"), **own)
        self._events = Counter("esper_events", "Events so far.", (*_RUN, "event"), **own)
        self._compiles = Counter("esper_compiles", "XLA compiles so far.", _RUN, **own)
        self._dropped = Gauge("esper_dropped_events", "Events that a sink never got.", ("run_id", "sink"), **own)
        self._states: dict[tuple[str, ...], str] = {}
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
        for event in events:
            self._take(event)

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

    def _take(self, event: Event) -> None:
        of = {"run_id": event.run_id, "run": event.run}
        self._events.labels(**of, event=event.event).inc()
        self._step.labels(**of).set(event.step)
        if event.time:
            self._time.labels(**of).set(event.time.timestamp())
        if event.compiles:
            self._compiles.labels(**of).inc(event.compiles)
        if isinstance(event, Notice):
            self._notice(event)
        elif isinstance(event, Seed):
            self._seed(event, {**of, "layer": event.layer, "seed": str(event.seed)})
        elif event.event in ("evaluate", "score"):
            for name, value in event.figures.items():
                if isinstance(value, int | float):
                    self._figure.labels(**of, name=name).set(value)

    def _notice(self, event: Notice) -> None:
        total = event.figures.get("total")
        if event.event == "drops" and isinstance(total, int):
            self._dropped.labels(run_id=event.run_id, sink=str(event.figures.get("sink"))).set(total)

    def _seed(self, event: Seed, place: dict[str, Any]) -> None:
        if event.event == "alpha":
            alpha = event.figures.get("alpha")
            if isinstance(alpha, int | float):
                self._alpha.labels(**place).set(alpha)
            return
        if event.event == "declined":
            return
        key, state = tuple(place.values()), _STATES.get(event.event, event.event)
        if (before := self._states.get(key)) is not None:
            self._state.remove(*key, before)
        self._states[key] = state
        self._state.labels(**place, state=state).set(1)
