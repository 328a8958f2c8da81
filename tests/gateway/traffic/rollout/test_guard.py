"""What single guards make of what they are shown."""

import random

import pytest

from gateway.traffic.rollout.blocks import Compared, Outcome
from gateway.traffic.rollout.guard import Guard, make_guard


def rated(guard: Guard, blocks: int, *, control: float, canary: float, low: float, high: float) -> Guard:
    """Show a guard blocks whose requests are scored ``high`` with these probabilities, else ``low``."""
    chance = random.Random(6)

    def a_score(good: float) -> Outcome:
        return Outcome({"feedback": high if chance.random() < good else low})

    guard.stake(1.0)
    for _ in range(blocks):
        guard.add(Compared([a_score(control) for _ in range(9)], [a_score(canary)]))
    return guard


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (4.0, 5.0), (-2.0, -1.0)])
def test_feedback_is_understood_on_every_scale(low: float, high: float) -> None:
    bad = rated(make_guard("feedback", 0.05, 0.1), 300, control=0.8, canary=0.5, low=low, high=high)
    assert bad.worse > 1000 and bad.harmless < 1
    same = rated(make_guard("feedback", 0.05, 0.1), 600, control=0.8, canary=0.8, low=low, high=high)
    assert same.worse < 20 and same.harmless > 100


def test_feedback_that_is_always_the_same_proves_no_harm() -> None:
    guard = rated(make_guard("feedback", 0.05, 0.1), 300, control=1.0, canary=1.0, low=0.0, high=1.0)
    assert guard.worse == 1 and guard.harmless > 1


def test_until_enough_controls_were_rated_nothing_is_made_of_feedback() -> None:
    guard = rated(make_guard("feedback", 0.05, 0.1), 5, control=1.0, canary=0.0, low=0.0, high=1.0)
    assert guard.worse == 1 and "0.0% of 0 requests" in guard.describe()


@pytest.mark.parametrize(
    ("name", "hope"),
    [
        ("ttft", "worse by less than 10%, if at all"),
        ("error_rate", "less than 2 times as frequent, or rarer than 1%"),
        ("ttft_p95", "less than 2 times as frequent, or rarer than 1%"),
    ],
)
def test_what_must_be_shown_is_said(name: str, hope: str) -> None:
    assert make_guard(name, 0.05, 0.1).hope == hope
