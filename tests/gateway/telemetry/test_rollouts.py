"""Rollouts on the Prometheus page."""

import pytest

from gateway.telemetry.metrics import Metrics
from gateway.wire.rollouts import GuardShown, RolloutShown, Status
from tests.gateway.telemetry.test_metrics import samples

CHAT = ("model", "chat")


def a_rollout(status: Status, weight: float = 25.0) -> RolloutShown:
    guards = [GuardShown("ttft", "", 10.0, 40.0, 150.0, 100.0, "")]
    return RolloutShown("chat", "stable", "canary", status, weight, 2, 4, 0.0, "", 900, 60, guards, [], [])


class Some:
    """Rollouts that stand as they are told."""

    failures = 3
    untold = 4

    def __init__(self, rollouts: list[RolloutShown]) -> None:
        self._rollouts = rollouts

    def shown(self) -> list[RolloutShown]:
        return self._rollouts


def test_without_rollouts_nothing_is_shown() -> None:
    found = samples(Metrics())
    shown = [name for name, _ in found if name.startswith("penstock_rollout")]
    assert shown == ["penstock_rollout_unsaved_total", "penstock_rollout_untold_requests_total"]


@pytest.mark.parametrize(("status", "number"), [("running", 0), ("held", 0), ("promoted", 1), ("rolled_back", 2)])
def test_how_a_rollout_stands(status: Status, number: int) -> None:
    metrics = Metrics()
    metrics.rollouts.watch(Some([a_rollout(status)]))
    found = samples(metrics)
    assert found["penstock_rollout_status", (CHAT,)] == number
    assert found["penstock_rollout_weight", (CHAT,)] == 25
    assert found["penstock_rollout_evidence", (("guard", "ttft"), ("kind", "worse"), CHAT)] == 0.25
    assert found["penstock_rollout_evidence", (("guard", "ttft"), ("kind", "harmless"), CHAT)] == 1.5
    assert found["penstock_rollout_compared_requests_total", (("arm", "canary"), CHAT)] == 60
    assert found["penstock_rollout_compared_requests_total", (("arm", "control"), CHAT)] == 900
    assert found["penstock_rollout_unsaved_total", ()] == 3
    assert found["penstock_rollout_untold_requests_total", ()] == 4
