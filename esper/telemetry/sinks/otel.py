"""Figures as metrics, and a span for each run with its events, for an OpenTelemetry collector."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esper.configs.redaction import redacted
from esper.errors import MissingExtraError, TelemetryError
from esper.telemetry.events import Event
from esper.telemetry.sinks.base import Sink

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SECONDS = 5.0  # that an answer may take
_EVENTS, _ATTRIBUTES = 10_000, 1_000  # that a run's span keeps, the latest, and of each; the library's own are 128


class OpenTelemetry(Sink):
    """Sends OTLP over HTTP: the latest figures at each write, and the run as a span once it has ended.

    Args:
        endpoint: URL of the collector; what follows the port is left to it: `/v1/metrics` and `/v1/traces` are added.

    Raises:
        MissingExtraError: The OpenTelemetry packages are not installed.
    """

    name = "otel"

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import InMemoryMetricReader
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanLimits, TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        except ImportError as error:
            what = "opentelemetry-exporter-otlp-proto-http"
            raise MissingExtraError("OpenTelemetry", what, "otel") from error
        # The bus says what fails, once; the exporters would for every try.
        logging.getLogger("opentelemetry.exporter.otlp.proto.http").setLevel(logging.CRITICAL)
        self._endpoint, base = redacted(endpoint), endpoint.rstrip("/")
        self._metrics = OTLPMetricExporter(f"{base}/v1/metrics", timeout=_SECONDS)
        self._traces = OTLPSpanExporter(f"{base}/v1/traces", timeout=_SECONDS)
        # Collected in memory, and sent from here: the library's own threads would keep failures to themselves.
        self._reader, self._ended = InMemoryMetricReader(), InMemorySpanExporter()
        resource = Resource.create({"service.name": "esper"})
        self._meters = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        limits = SpanLimits(max_events=_EVENTS, max_event_attributes=_ATTRIBUTES)
        self._tracers = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
        self._tracers.add_span_processor(SimpleSpanProcessor(self._ended))
        self._figure = self._meters.get_meter("esper").create_gauge("esper.figure")
        self._events = self._meters.get_meter("esper").create_counter("esper.events")
        self._spans: dict[tuple[str, str], Span] = {}
        self._taken: dict[str, int] = {}

    def write(self, events: Sequence[Event]) -> None:
        """Takes the events over, and sends what they changed."""
        for event in events:
            if event.sequence > self._taken.get(event.run_id, -1):  # after a failure they come again
                self._taken[event.run_id] = event.sequence
                self._take(event)
        self._send()

    def close(self) -> None:
        """Ends the spans of runs that did not, and sends them."""
        for span in self._spans.values():
            span.end()
        self._spans.clear()
        try:
            self._send()
        finally:
            self._tracers.shutdown()
            self._meters.shutdown()
            self._metrics.shutdown()
            self._traces.shutdown()

    def _take(self, event: Event) -> None:
        key = event.run_id, event.run
        of: dict[str, Any] = {"esper.run_id": event.run_id, "esper.run": event.run}
        self._events.add(1, {**of, "event": event.event})
        for name, value in event.figures.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._figure.set(value, {**of, "name": name, **_place(event)})
        at = int(event.time.timestamp() * 1e9) if event.time else None
        if key not in self._spans:
            self._spans[key] = self._tracers.get_tracer("esper").start_span(
                f"esper {event.run}", None, start_time=at, attributes=of
            )
        told = {"esper.step": event.step, "esper.reason": event.reason, **_place(event)}
        self._spans[key].add_event(event.event, told, at)
        if event.event in ("end", "failed"):
            self._spans.pop(key).end(at)

    def _send(self) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult
        from opentelemetry.sdk.trace.export import SpanExportResult

        found, spans = self._reader.get_metrics_data(), self._ended.get_finished_spans()
        sent = found is None or self._metrics.export(found) is MetricExportResult.SUCCESS
        if spans and sent:
            sent = self._traces.export(spans) is SpanExportResult.SUCCESS
        if not sent:
            raise TelemetryError(
                f"the OpenTelemetry collector at {self._endpoint} does not take what is sent: start it, or correct "
                "components.nissa.config.otel_endpoint"
            )
        self._ended.clear()


def _place(event: Event) -> dict[str, Any]:
    return {} if event.layer is None else {"esper.layer": event.layer, "esper.seed": event.seed}
