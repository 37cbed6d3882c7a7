"""Places that show figures: what TensorBoard, Prometheus and OpenTelemetry are told, read back by their own means."""

import logging
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from esper.errors import TelemetryError
from esper.telemetry import Bus, event_of
from esper.telemetry.sinks.otel import OpenTelemetry
from esper.telemetry.sinks.prometheus import Prometheus
from esper.telemetry.sinks.tensorboard import TensorBoard
from esper.train.history import Record
from telemetry.samples import SEED, evaluation, record

RUN = (
    Record(0, "start", "go"),
    evaluation(10, loss=2.0, accuracy=0.25, words="x"),
    evaluation(20, loss=math.nan, accuracy=0.5),
    Record(20, "germinate", "it stopped improving", "head", 0, {"blueprint": "mlp", "width": 4}, 3, ("f",), 1.0),
    Record(30, "grafting", "it gains", "head", 0),
    Record(40, "alpha", "by hand", "head", 0, {"alpha": 0.5}),
    Record(50, "drops", "redis missed some", figures={"sink": "redis", "total": 7}),
    Record(60, "end", "the last step is done"),
)


def events(run_id="r"):
    return [event_of(told, run_id=run_id, sequence=at, seconds=1e9 + at) for at, told in enumerate(RUN)]


# ---- TensorBoard ----------------------------------------------------------------------------------------


def accumulated(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    found.Reload()
    return found


def test_tensorboard_reads_curves_and_reasons(tmp_path):
    with Bus(TensorBoard(tmp_path)) as bus:
        for told in RUN:
            bus.publish(told)
        bus.publish(Record(5, "evaluate", figures={"loss": 9.0}, run="control"))
    found = accumulated(tmp_path / "growth")
    assert {"loss", "accuracy", "head[0]/width", "head[0]/alpha", "total"} == set(found.Tags()["scalars"])
    losses = [(each.step, each.value) for each in found.Scalars("loss")]
    assert losses[0] == (10, 2.0) and losses[1][0] == 20 and math.isnan(losses[1][1])
    (why,) = found.Tensors("head[0]/germinate")
    assert why.step == 20 and why.tensor_proto.string_val == [b"it stopped improving"]
    assert [each.value for each in accumulated(tmp_path / "control").Scalars("loss")] == [9.0]


def test_tensorboard_forgets_where_a_run_goes_back_what_came_after(tmp_path):
    told = [evaluation(step, loss=float(step)) for step in (10, 20, 30)]
    back = Record(30, "rollback", "it diverged", figures={"back_to": 10, "retry": 1, "culled": "none"})
    with Bus(TensorBoard(tmp_path)) as bus:
        for each in (*told, back, evaluation(20, loss=0.5), evaluation(30, loss=0.25), Record(30, "end", "killed")):
            bus.publish(each)
    with Bus(TensorBoard(tmp_path)) as bus:
        for each in (Record(20, "resume", figures={"rollbacks": 1}), evaluation(30, loss=0.125)):
            bus.publish(each)
    found = accumulated(tmp_path / "growth")
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(10, 10.0), (20, 0.5), (30, 0.125)]


def test_tensorboard_reads_what_was_written_before_the_run_ended(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write(events()[:2])
    assert [each.value for each in accumulated(tmp_path / "growth").Scalars("loss")] == [2.0]
    sink.close()


def test_tensorboard_says_what_to_do_where_it_cannot_write(tmp_path):
    (tmp_path / "growth").touch()
    sink = TensorBoard(tmp_path)
    with pytest.raises(TelemetryError, match="a part of this path is a file"):
        sink.write(events())
    (tmp_path / "growth").unlink()
    sink.write(events())
    sink.close()
    assert len(accumulated(tmp_path / "growth").Scalars("loss")) == 2


# ---- Prometheus -----------------------------------------------------------------------------------------


def asked(port):
    from prometheus_client.parser import text_string_to_metric_families

    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sorted(value for name, value in sample.labels.items() if name not in ("run_id", "run"))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_finds_the_latest_figures():
    sink = Prometheus()
    assert sink.port is None
    sink.write(events())
    found = asked(sink.port)
    assert found["esper_step",] == 60 and found["esper_figure", "accuracy"] == 0.5
    assert math.isnan(found["esper_figure", "loss"])
    assert found["esper_seed_alpha", "0", "head"] == 0.5
    assert [key for key in found if key[0] == "esper_seed_state"] == [("esper_seed_state", "0", "grafting", "head")]
    assert found["esper_events_total", "evaluate"] == 2 and found["esper_compiles_total",] == 3
    assert found["esper_dropped_events", "redis"] == 7
    port = sink.port
    sink.close()
    with pytest.raises(URLError):
        urlopen(f"http://127.0.0.1:{port}/metrics")


def test_prometheus_knows_what_a_run_that_goes_on_told_before():
    sink = Prometheus(before=events()[:-1])
    sink.write(events()[-1:])
    found = asked(sink.port)
    sink.close()
    assert [key for key in found if key[0] == "esper_seed_state"] == [("esper_seed_state", "0", "grafting", "head")]
    assert found["esper_figure", "accuracy"] == 0.5


def test_prometheus_shows_what_a_run_went_back_to():
    told = (
        Record(5, "load", "from the library", "head", 0, {"blueprint": "mlp"}),
        Record(5, "germinate", "why", "head", 1, {"blueprint": "mlp"}),
        Record(8, "grafting", "why", "head", 0),
        evaluation(10, loss=2.0),
        Record(10, "active", "why", "head", 0),
        Record(12, "grafting", "why", "head", 1),
        evaluation(15, loss=9.0, other=1.0),
        Record(20, "rollback", "it diverged", figures={"back_to": 10, "culled": "head[1]"}),
        Record(20, "sink_down", "start it", figures={"sink": "redis"}),
    )
    sink = Prometheus()
    for at, each in enumerate(told):
        sink.write([event_of(each, run_id="r", sequence=at, seconds=1e9)])
    found = asked(sink.port)
    sink.close()
    assert found["esper_step",] == 10 and found["esper_figure", "loss"] == 2.0
    assert ("esper_figure", "other") not in found and found["esper_events_total", "evaluate"] == 2
    states = {key[1:] for key in found if key[0] == "esper_seed_state"}
    assert states == {("0", "grafting", "head"), ("1", "culled", "head")}
    assert found["esper_seed_alpha", "1", "head"] == 0 and ("esper_seed_alpha", "0", "head") not in found


def test_the_port_that_was_free_is_told(caplog):
    sink = Prometheus(0)
    with caplog.at_level(logging.INFO, "esper.telemetry"):
        sink.write(events())
        sink.write(events())
    port = sink.port
    sink.close()
    assert [line.split("http")[1] for line in caplog.messages] == [f"://127.0.0.1:{port}/metrics"]


def test_runs_have_registries_of_their_own_and_free_their_port():
    first, second = Prometheus(), Prometheus()
    first.write(events("first"))
    second.write(events("second"))
    port = first.port
    third = Prometheus(port)
    with pytest.raises(TelemetryError, match="give another prometheus_port"):
        third.write(events())
    first.close()
    third.write(events("third"))
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert 'run_id="third"' in text and 'run_id="second"' not in text
    second.close()
    third.close()


# ---- OpenTelemetry --------------------------------------------------------------------------------------


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent, and refuses while it is told."""

    def __init__(self):
        self.sent, self.refuses = [], False

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = handler.rfile.read(int(handler.headers["content-length"]))
                if not self.refuses:
                    self.sent.append((handler.path, body))
                handler.send_response(400 if self.refuses else 200)
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            def log_message(handler, *_):
                return

        super().__init__(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self.thread.join()

    def figures(self):
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found = {}
        for path, body in self.sent:
            if path == "/v1/metrics":
                for metric in _inside(ExportMetricsServiceRequest.FromString(body).resource_metrics, "metrics"):
                    points = metric.gauge.data_points or metric.sum.data_points
                    for point in points:
                        labels = {each.key: each.value.string_value for each in point.attributes}
                        key = metric.name, labels.get("name") or labels.get("event")
                        found[key] = point.as_double or point.as_int
        return found

    def spans(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        bodies = [body for path, body in self.sent if path == "/v1/traces"]
        return [
            span
            for body in bodies
            for span in _inside(ExportTraceServiceRequest.FromString(body).resource_spans, "spans")
        ]


def _inside(resources, name):
    scopes = "scope_metrics" if name == "metrics" else "scope_spans"
    return [each for resource in resources for scope in getattr(resource, scopes) for each in getattr(scope, name)]


def test_a_collector_gets_figures_and_a_span_with_its_events():
    with Collector() as collector:
        with Bus(OpenTelemetry(f"http://127.0.0.1:{collector.server_port}/")) as bus:
            for told in RUN:
                bus.publish(told)
        assert bus.counts()["otel"].written == len(RUN)
        figures = collector.figures()
        assert figures["esper.figure", "loss"] == 2.0 and figures["esper.figure", "accuracy"] == 0.5
        assert figures["esper.events", "evaluate"] == 2
        (span,) = collector.spans()
        assert span.name == "esper growth" and [event.name for event in span.events] == [told.event for told in RUN]


def test_a_collector_that_refuses_is_told_of_once_and_gets_everything_when_it_is_back(caplog):
    caplog.set_level(logging.DEBUG)
    with Collector() as collector:
        sink = OpenTelemetry(f"http://me:s3cret@127.0.0.1:{collector.server_port}")
        collector.refuses = True
        for _ in range(2):
            with pytest.raises(TelemetryError, match="does not take what is sent: start it") as refused:
                sink.write(events())
        assert "s3cret" not in str(refused.value)
        collector.refuses = False
        sink.write(events())
        sink.close()
        assert collector.figures()["esper.events", "evaluate"] == 2 and len(collector.spans()) == 1
    assert not [each for each in caplog.records if each.name.startswith("opentelemetry") and each.levelno >= 30]


def test_a_run_that_never_ends_is_sent_when_it_is_closed():
    with Collector() as collector:
        sink = OpenTelemetry(f"http://127.0.0.1:{collector.server_port}")
        sink.write(events()[:3])
        assert collector.spans() == []
        sink.close()
        assert len(collector.spans()) == 1


def test_every_kind_of_event_is_taken_by_each(tmp_path):
    from esper.telemetry.events import KINDS

    told = [
        event_of(record(kind), run_id="r", sequence=at, seconds=1e9)
        for at, kind in enumerate([*KINDS, "a_kind_of_tomorrow"])
    ]
    assert len(told) > 20 and SEED.layer
    with Collector() as collector:
        sinks = [TensorBoard(tmp_path), Prometheus(), OpenTelemetry(f"http://127.0.0.1:{collector.server_port}")]
        for sink in sinks:
            sink.write(told)
            sink.close()


def test_a_span_keeps_more_events_than_the_library_would_by_itself():
    sink = OpenTelemetry("http://127.0.0.1:1")
    for number in range(500):
        sink._take(event_of(Record(number, "hold", "why"), run_id="r", sequence=number, seconds=1e9))
    (span,) = sink._spans.values()
    assert len(span.events) == 500 and span.dropped_events == 0
