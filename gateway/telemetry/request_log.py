"""What does the Prometheus page say about the request log and telemetry? Read where they count, when it is asked."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_COUNTS: Final = ("records", "lost", "failures")


class RequestLog(Protocol):
    """A request log, as far as it counts."""

    @property
    def records(self) -> int:
        """Records that are written."""

    @property
    def lost(self) -> int:
        """Records that are not, and won't be."""

    @property
    def failures(self) -> int:
        """Attempts to write that failed."""

    @property
    def backlog(self) -> int:
        """Bytes that wait for the disk."""


class Traces(Protocol):
    """What sends traces, as far as it counts."""

    @property
    def lost(self) -> int:
        """Traces that were not sent, and won't be."""


class RequestLogMetrics(Collector):
    """The request log of a gateway process, and the traces that it sends. ``table`` has what each metric means."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        self.log: RequestLog | None = None
        """The log to show, if there is one."""
        self.traces: Traces | None = None
        """What sends traces, if something does."""

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for name in _COUNTS:
            yield self._counter(f"penstock_log_{name}_total", getattr(self.log, name, 0))
        backlog = "penstock_log_backlog_bytes"
        yield GaugeMetricFamily(backlog, self._table[backlog].help, value=self.log.backlog if self.log else 0)
        yield self._counter("penstock_traces_lost_total", self.traces.lost if self.traces else 0)

    def _counter(self, name: str, value: float) -> CounterMetricFamily:
        return CounterMetricFamily(name.removesuffix("_total"), self._table[name].help, value=value)
