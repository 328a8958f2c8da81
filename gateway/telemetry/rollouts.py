"""What does the Prometheus page say about rollouts? How they stand, read when the page is asked for."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.wire.rollouts import RolloutShown

_STATUS: Final = {"running": 0, "held": 0, "promoted": 1, "rolled_back": 2}
_GAUGES: Final = ("weight", "status", "evidence")


class Rollouts(Protocol):
    """The rollouts of a gateway process."""

    failures: int
    """How often they could not be saved."""

    @property
    def untold(self) -> int:
        """How many requests the process that leads could not be told of."""

    def shown(self) -> Iterable[RolloutShown]:
        """How they all stand."""


class RolloutMetrics(Collector):
    """The rollouts that the configuration asks for, whose models and guards are the only labels.

    ``table`` has what each metric means.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        self._rollouts: Rollouts | None = None

    def watch(self, rollouts: Rollouts) -> None:
        """Show these rollouts from now on."""
        self._rollouts = rollouts

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        weight, status, evidence = (self._gauge(f"penstock_rollout_{name}") for name in _GAUGES)
        requests = self._counter("penstock_rollout_compared_requests_total")
        for one in self._rollouts.shown() if self._rollouts is not None else ():
            weight.add_metric([one.model], one.weight)
            status.add_metric([one.model], _STATUS[one.status])
            requests.add_metric([one.model, "control"], one.controls)
            requests.add_metric([one.model, "canary"], one.canaries)
            for guard in one.guards:
                evidence.add_metric([one.model, guard.name, "worse"], guard.worse / guard.worse_limit)
                evidence.add_metric([one.model, guard.name, "harmless"], guard.harmless / guard.harmless_limit)
        unsaved = self._counter("penstock_rollout_unsaved_total")
        unsaved.add_metric([], self._rollouts.failures if self._rollouts is not None else 0)
        untold = self._counter("penstock_rollout_untold_requests_total")
        untold.add_metric([], self._rollouts.untold if self._rollouts is not None else 0)
        yield from (weight, status, evidence, requests, unsaved, untold)

    def _gauge(self, name: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, self._table[name].help, labels=self._table[name].labels)

    def _counter(self, name: str) -> CounterMetricFamily:
        metric = self._table[name]
        return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=metric.labels)
