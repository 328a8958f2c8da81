"""`scheduler.budget`: seconds, tokens and the floor."""

from typing import Any

import pytest

from scheduler.budget import Budget
from scheduler.config import SchedulerConfig
from scheduler.steptime import Coefficients, StepTime, Work
from tests.scheduler.simulation import MACHINE, make_request

NONE = Work(0, 0, 0, 0)
# Ten decodes: 11 ms on a machine of 10 ms a step and 0.1 ms a token.
TEN = Work(10, 1000, 1000, 10)


def grants(decodes: Work, tightest: float, *prompts: int, ttft: float = 1e9, **settings: Any) -> list[int]:
    budget = Budget(SchedulerConfig(**settings), StepTime(MACHINE), decodes, tightest, 0.0)
    return [budget.grant(make_request(uid, length, ttft=ttft)) for uid, length in enumerate(prompts)]


def test_the_tightest_slack_is_what_a_step_may_take() -> None:
    # (0.05 - 0.011) / 0.1 ms, less the margin of a tenth.
    assert grants(TEN, 0.05, 5000) == [340]
    assert grants(TEN, 0.05, 5000, margin=0.0) == [390]


def test_no_step_is_longer_than_max_step() -> None:
    assert grants(TEN, 1e9, 5000, max_step=0.1) == [890]
    assert grants(NONE, 0.0, 5000, max_step=0.1) == [900]


def test_no_step_is_larger_than_max_batch_tokens() -> None:
    assert grants(TEN, 1e9, 400, 5000, max_step=10.0, max_batch_tokens=1000) == [400, 590]


@pytest.mark.parametrize("tightest", [-5.0, 0.0, 0.011])
def test_late_decodes_leave_the_floor(tightest: float) -> None:
    assert grants(TEN, tightest, 40, 500, 500, min_prefill_tokens=64) == [40, 24, 0]


def test_a_fixed_size_counts_the_decodes() -> None:
    assert grants(TEN, -1.0, 300, 500, time_budget=False, token_budget=512) == [300, 202]
    assert grants(Work(600, 0, 0, 600), -1.0, 300, time_budget=False, token_budget=512, max_running=700) == [64]


def test_a_first_token_in_the_step_bounds_what_follows() -> None:
    # The first prompt's last slice: its token is due at 60 ms, the step takes 31 ms with it, 29 ms are left.
    assert grants(TEN, 1e9, 200, 5000, ttft=0.06) == pytest.approx([200, 290], abs=1)
    # One that is late anyway bounds nothing.
    assert grants(TEN, 1e9, 200, 5000, ttft=0.01, max_step=0.2) == pytest.approx([200, 1690], abs=1)
    assert grants(TEN, 1e9, 200, 5000, ttft=0.06, max_step=0.05, deadlines=False) == pytest.approx([200, 190], abs=1)


def test_seconds_is_the_step_so_far() -> None:
    budget = Budget(SchedulerConfig(), StepTime(MACHINE), TEN, 1e9, 0.0)
    assert budget.seconds == pytest.approx(0.011)
    budget.grant(make_request(1, 100))
    assert budget.seconds == pytest.approx(0.021)


def test_who_is_ahead_leaves_room_for_others_to_come() -> None:
    config = SchedulerConfig(tpot=0.05, max_step=0.25)
    machine = StepTime(Coefficients(step=1e-3, token=1e-4, context=0, pair=0, request=0))
    decodes = Work(10, 0, 0, 10)
    request = make_request(1, 1000, ttft=10.0)

    def granted(ahead: bool, work: Work = decodes) -> int:
        return Budget(config, machine, work, tightest=0.2, now=0.0).grant(request, ahead=ahead)

    # 0.18 s of slack and 2 ms of decodes; a quarter of the time between tokens.
    assert granted(False) == 1000
    assert granted(True) == pytest.approx((0.25 * 0.05 - 0.002) / 1e-4, abs=1)
    # Where decodes take longer than that, a quarter more; and without decodes nobody is in the way.
    assert granted(True, Work(400, 0, 0, 400)) == pytest.approx(0.25 * 0.041 / 1e-4, abs=1)
    assert granted(True, Work(0, 0, 0, 0)) == 1000
