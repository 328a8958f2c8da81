"""How do traces and metrics get to a collector without anybody waiting for it? By OTLP over HTTP, in a thread.

The event loop only puts a record into a queue; the thread makes its spans. Where the collector is slow or away, a
bounded queue waits, and what exceeds it is lost and counted. Needs OpenTelemetry's SDK and exporter, an extra: import
this only where telemetry is on.
"""

import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from flywheel.record import Record
from gateway.telemetry.measures import MEASURES, Measures
from gateway.telemetry.plan import TelemetryPlan
from gateway.telemetry.spans import SpanMaker
from gateway.telemetry.trace import Trace

_FLUSH: Final = 2.0  # seconds for what is left when the process ends

log = logging.getLogger(__name__)


class Exporter:
    """Sends what has been recorded to a collector.

    Args:
        plan: where to.
        measures: the metrics.

    Attributes:
        lost: traces that were not sent, and won't be.
    """

    def __init__(self, plan: TelemetryPlan, measures: Measures) -> None:
        self._measures = measures
        self._resource = _resource()
        self._scope = InstrumentationScope("penstock", _version())
        self._maker = SpanMaker(self._resource, self._scope)
        headers = dict(plan.headers) or None
        self._spans = OTLPSpanExporter(plan.endpoint("traces"), headers=headers)
        self._metrics = OTLPMetricExporter(plan.endpoint("metrics"), headers=headers) if plan.metrics else None
        self._every = _number("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000
        self._at_once = int(_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512))
        self._most = int(_number("OTEL_BSP_MAX_QUEUE_SIZE", 2048))
        self._metrics_every = _number("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000
        self._started = time.time_ns()
        self._queue: deque[tuple[Record, Trace]] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Traces that are yet to be sent."""
        return len(self._queue)

    def add(self, record: Record, trace: Trace) -> None:
        """A request has ended, whose trace is kept."""
        if len(self._queue) >= self._most:
            self.lost += 1
            return
        self._queue.append((record, trace))
        if len(self._queue) >= self._at_once:
            self._wake.set()

    def close(self) -> None:
        """Send what is left, within a few seconds, and stop."""
        self._stop.set()
        self._wake.set()
        self._thread.join(_FLUSH)
        self._spans.shutdown()  # type: ignore[no-untyped-call]  # a thread that waits for the collector gives up
        if self._metrics is not None:
            self._metrics.shutdown()
        self._thread.join(_FLUSH)

    # In the thread

    def _run(self) -> None:
        next_metrics = monotonic() + self._metrics_every
        last = False
        while not last:
            self._wake.wait(min(self._every, max(0.0, next_metrics - monotonic())))
            self._wake.clear()
            last = self._stop.is_set()  # what came before that is there now
            try:
                self._send_spans()
                if self._metrics is not None and (last or monotonic() >= next_metrics):
                    next_metrics = monotonic() + self._metrics_every
                    self._send_metrics(self._metrics)
            except Exception:
                log.exception("telemetry could not be sent")

    def _send_spans(self) -> None:
        while batch := [self._queue.popleft() for _ in range(min(len(self._queue), self._at_once))]:
            spans = [span for record, trace in batch for span in self._maker.spans(record, trace)]
            if self._spans.export(spans) is not SpanExportResult.SUCCESS:
                self.lost += len(batch)
                self._stop.wait(self._every)  # it has said so in the log, which isn't the place for hundreds of these

    def _send_metrics(self, exporter: OTLPMetricExporter) -> None:
        """Send all metrics as they stand."""
        if found := list(self._histograms(time.time_ns())):
            metrics = ScopeMetrics(self._scope, found, "")
            exporter.export(MetricsData([ResourceMetrics(self._resource, [metrics], "")]))

    def _histograms(self, now: int) -> Iterator[Metric]:
        for measure in MEASURES:
            points = []
            for attributes, found in self._measures.read(measure):
                counts = list(found.counts)
                points.append(
                    HistogramDataPoint(
                        dict(attributes),
                        self._started,
                        now,
                        sum(counts),
                        found.total,
                        counts,
                        measure.bounds,
                        min=None,  # type: ignore[arg-type]  # optional in OTLP, and worth nothing since the start
                        max=None,  # type: ignore[arg-type]
                    )
                )
            if points:
                data = Histogram(points, AggregationTemporality.CUMULATIVE)
                yield Metric(measure.name, measure.help, measure.unit, data)


class _HashedOnce(Resource):
    """The encoder asks for a resource's hash with each span, which is a fifth of its time: that of all its JSON."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = hash(resource)

    def __hash__(self) -> int:
        return self._hash


def _resource() -> Resource:
    """Who we are: what OpenTelemetry's variables say, and what they don't."""
    said = OTELResourceDetector().detect().attributes
    ours = {"service.name": "penstock", "service.version": _version(), "service.instance.id": str(uuid.uuid4())}
    return _HashedOnce(Resource.create({**ours, **said}))


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return ""


def _number(variable: str, usual: float) -> float:
    """A number above 0 from the environment."""
    try:
        found = float(os.environ.get(variable, ""))
    except ValueError:
        return usual
    return found if found > 0 else usual
