"""What is decided by the clock alone: breakers, slow starts, budgets, quantiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.upstream.breaker import Breaker
from gateway.fleet.upstream.budget import Budget
from gateway.fleet.upstream.quantile import RecentQuantile


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    breaker = Breaker(threshold=3, pause=1.0)
    assert [breaker.failed(0.0), breaker.failed(0.0), breaker.succeeded(0.0)] == [False, False, False]
    assert [breaker.failed(1.0), breaker.failed(1.0)] == [False, False]
    assert breaker.allows(1.0)
    assert breaker.failed(1.0)
    assert not breaker.allows(1.5)
    assert breaker.state(1.5) == "open"
    assert breaker.opens_in(1.5) == pytest.approx(0.5)


def test_one_trial_at_a_time_decides_and_pauses_double() -> None:
    breaker = Breaker(threshold=1, pause=1.0, most=3.0)
    now = 0.0
    breaker.failed(now)
    for pause in (1.0, 2.0, 3.0, 3.0):
        assert not breaker.allows(now + pause - 0.01)
        now += pause
        assert breaker.state(now) == "half-open"
        assert breaker.allows(now)
        breaker.began()
        assert not breaker.allows(now)
        assert breaker.failed(now)
    now += 3.0
    breaker.began()
    assert breaker.succeeded(now)
    assert breaker.state(now) == "closed"
    breaker.failed(now)
    assert breaker.opens_in(now) == 1.0


def test_a_trial_that_says_nothing_lets_another_one_try() -> None:
    breaker = Breaker(threshold=1, pause=1.0)
    breaker.failed(0.0)
    breaker.began()
    breaker.abandoned()
    assert breaker.allows(1.0)


def test_failures_of_what_was_sent_before_it_opened_do_not_prolong_it() -> None:
    breaker = Breaker(threshold=1, pause=1.0)
    breaker.failed(0.0)
    assert not breaker.failed(0.9)
    assert breaker.allows(1.0)


def test_a_target_that_returns_starts_slowly() -> None:
    breaker = Breaker(slow_start=10.0)
    assert breaker.weight(5.0) == 1.0
    breaker.returned(100.0)
    assert [breaker.weight(100.0 + seconds) for seconds in (0.0, 0.5, 5.0, 10.0)] == pytest.approx([0.1, 0.1, 0.5, 1.0])
    assert not breaker.slow


@given(share=st.floats(0.0, 1.0), requests=st.integers(0, 500), reserve=st.floats(0.0, 20.0))
def test_a_budget_is_never_overdrawn(share: float, requests: int, reserve: float) -> None:
    budget = Budget(share, reserve)
    taken = 0
    for _ in range(requests):
        budget.request()
        taken += budget.take(1.0)
    assert taken <= reserve + share * requests + 1e-6


def test_a_budget_trickles_back() -> None:
    budget = Budget(0.0, reserve=1.0, trickle=2.0)
    assert budget.take(10.0)
    assert not budget.take(10.1)
    assert budget.take(10.7)


def test_a_quantile_follows_what_is_recent() -> None:
    quantile = RecentQuantile(0.95, fewest=32)
    seen = []
    for _ in range(32):
        seen.append(quantile.value)
        quantile.add(1.0)
    assert seen == [None] * 32
    assert quantile.value == 1.0
    for number in range(1000):
        quantile.add(float(number % 100))
    assert quantile.value == pytest.approx(95.0, abs=2)
