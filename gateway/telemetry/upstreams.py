"""What does the Prometheus page say about upstreams? Plain numbers, read when the page is asked for."""

from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.fleet.upstream.target import Target

_STATES: Final = {"closed": 0, "half-open": 1, "open": 2}
_COUNTS: Final = {
    "penstock_retries_total": "retries",
    "penstock_hedges_total": "hedges",
    "penstock_hedges_won_total": "hedges_won",
    "penstock_streams_continued_total": "continued",
    "penstock_breaker_openings_total": "breaker_openings",
}
_OF_TARGETS: Final = (
    *("requests_total", "in_flight", "up", "breaker", "running", "waiting", "kv_used_ratio", "kv_blocks"),
    *("kv_losses_total", "believed_cached_tokens_total", "found_cached_tokens_total"),
)

Family = CounterMetricFamily | GaugeMetricFamily


class UpstreamMetrics(Collector):
    """Counts of the pass-through lane, and the state of its targets, which are the only labels.

    ``table`` has what each metric means.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        self.targets: Iterable[Target] = ()
        self.retries = 0
        self.hedges = 0
        self.hedges_won = 0
        self.breaker_openings = 0
        self.continued = 0

    def collect(self) -> Iterator[Family]:
        for name, field in _COUNTS.items():
            family = self._family(name)
            family.add_metric([], getattr(self, field))
            yield family
        families = {name: self._family(f"penstock_upstream_{name}") for name in _OF_TARGETS}
        now = perf_counter()
        for target in self.targets:
            _show(target, families, now)
        yield from families.values()

    def _family(self, name: str) -> Family:
        metric = self._table[name]
        if metric.kind == "counter":
            return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=metric.labels)
        return GaugeMetricFamily(name, metric.help, labels=metric.labels)


def _show(target: Target, families: Mapping[str, Family], now: float) -> None:
    for outcome in ("answered", "refused", "failed", "abandoned"):
        families["requests_total"].add_metric([target.name, outcome], getattr(target.counts, outcome))
    label = [target.name]
    families["in_flight"].add_metric(label, target.in_flight)
    families["up"].add_metric(label, target.up)
    families["breaker"].add_metric(label, _STATES[target.state(now)])
    if (follower := target.follower) is not None:
        families["kv_blocks"].add_metric(label, follower.blocks)
        families["kv_losses_total"].add_metric(label, follower.losses)
        families["believed_cached_tokens_total"].add_metric(label, target.counts.believed)
        families["found_cached_tokens_total"].add_metric(label, target.counts.found)
    if target.load is not None:
        families["running"].add_metric(label, target.load.running)
        families["waiting"].add_metric(label, target.load.waiting)
        families["kv_used_ratio"].add_metric(label, target.load.kv_used)
