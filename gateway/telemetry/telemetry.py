"""What becomes of a finished request's record beside the log? It is counted, and where its trace is kept, sent on."""

from typing import TYPE_CHECKING

import msgspec

from flywheel.record import Record
from gateway.telemetry.measures import Measures
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.plan import TelemetryPlan
from gateway.telemetry.trace import Trace, Traces

if TYPE_CHECKING:
    from gateway.telemetry.exporter import Exporter


class Telemetry:
    """The traces and metrics of one gateway process, on their way to a collector.

    Args:
        plan: where to.
        metrics: what the Prometheus page shows; kept traces are its exemplars.
    """

    def __init__(self, plan: TelemetryPlan, metrics: Metrics) -> None:
        self.traces = Traces(plan.share)
        self._plan = plan
        self._metrics = metrics
        self._measures = Measures() if plan.metrics else None
        self._exporter: Exporter | None = None
        metrics.request_log.traces = self

    @property
    def lost(self) -> int:
        """Traces that the collector didn't take, or that there was no room for."""
        return self._exporter.lost if self._exporter is not None else 0

    @property
    def waiting(self) -> int:
        """Traces that are yet to be sent."""
        return self._exporter.waiting if self._exporter is not None else 0

    def change(self, plan: TelemetryPlan | None) -> bool:
        """Keep more or fewer traces from now on; False where a plan wants more than that."""
        if plan is None or msgspec.structs.replace(plan, share=self._plan.share) != self._plan:
            return False
        self._plan = plan
        self.traces = Traces(plan.share)
        return True

    def start(self) -> None:
        """Begin to send."""
        from gateway.telemetry.exporter import Exporter  # an extra, and half a second to import

        self._exporter = Exporter(self._plan, self._measures or Measures())

    def ended(self, record: Record, trace: Trace) -> None:
        """A request is over."""
        if self._measures is not None:
            self._measures.count(record)
        if trace.sampled:
            self._keep(record, trace)

    def close(self) -> None:
        """Send what is left."""
        if self._exporter is not None:
            self._exporter.close()

    def _keep(self, record: Record, trace: Trace) -> None:
        timing = record.timing
        if timing is not None and timing.ended is not None:
            self._metrics.exemplify(record.endpoint, record.model, timing.first_token, timing.ended, trace.trace_id)
        if self._exporter is not None:
            self._exporter.add(msgspec.structs.replace(record, content=None), trace)
