"""What does the Prometheus page say about upstreams? Plain numbers, read when the page is asked for."""

from collections.abc import Iterator
from time import perf_counter
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.fleet.upstream.target import Target
from gateway.fleet.upstream.targets import Targets
from gateway.telemetry.metrics import METRICS

_STATES: Final = {"closed": 0, "half-open": 1, "open": 2}

Family = CounterMetricFamily | GaugeMetricFamily


class LaneMetrics(Collector):
    """Counts of one lane, and the state of its targets. Labels are those of the targets that there are."""

    def __init__(self, targets: Targets, registry: CollectorRegistry) -> None:
        self._targets = targets
        self.retries = 0
        self.hedges = 0
        self.hedges_won = 0
        self.opened = 0
        registry.register(self)

    def collect(self) -> Iterator[Family]:
        for name, value in (
            ("penstock_retries_total", self.retries),
            ("penstock_hedges_total", self.hedges),
            ("penstock_hedges_won_total", self.hedges_won),
            ("penstock_breaker_openings_total", self.opened),
        ):
            family = _family(name)
            family.add_metric([], value)
            yield family
        families = {
            name: _family(name)
            for name in (
                "penstock_upstream_requests_total",
                "penstock_upstream_in_flight",
                "penstock_upstream_up",
                "penstock_upstream_breaker",
                "penstock_upstream_running",
                "penstock_upstream_waiting",
                "penstock_upstream_kv_used_ratio",
            )
        }
        now = perf_counter()
        for target in self._targets:
            _show(target, families, now)
        yield from families.values()


def _show(target: Target, families: dict[str, Family], now: float) -> None:
    for outcome in ("answered", "refused", "failed", "abandoned"):
        families["penstock_upstream_requests_total"].add_metric([target.name, outcome], getattr(target.counts, outcome))
    families["penstock_upstream_in_flight"].add_metric([target.name], target.in_flight)
    families["penstock_upstream_up"].add_metric([target.name], target.up)
    families["penstock_upstream_breaker"].add_metric([target.name], _STATES[target.state(now)])
    if target.load is not None:
        families["penstock_upstream_running"].add_metric([target.name], target.load.running)
        families["penstock_upstream_waiting"].add_metric([target.name], target.load.waiting)
        families["penstock_upstream_kv_used_ratio"].add_metric([target.name], target.load.kv_used)


def _family(name: str) -> Family:
    metric = METRICS[name]
    if metric.kind == "counter":
        return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=metric.labels)
    return GaugeMetricFamily(name, metric.help, labels=metric.labels)
