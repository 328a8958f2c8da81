import random
from itertools import combinations, permutations
from math import exp, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.traffic.rollout.evidence import EventEvidence, Evidence, RankEvidence, RateEvidence

VALUES = st.lists(st.integers(0, 5).map(float), min_size=3, max_size=6)


@given(VALUES, st.data(), st.booleans())
def test_no_bet_on_ranks_can_be_expected_to_win_when_chance_decides(
    values: list[float], data: st.DataObject, below: bool
) -> None:
    """Over all ways of giving a block's values to its arms, in all orders, the mean capital is 1: ties or none."""
    canaries = data.draw(st.integers(1, len(values) - 1))
    capitals = []
    for order in permutations(values):
        evidence = RankEvidence(below=below)
        evidence.add(order[canaries:], order[:canaries])
        capitals.append(exp(evidence.log_capital))
    assert isclose(sum(capitals) / len(capitals), 1.0, rel_tol=1e-9)


@given(st.integers(2, 8), st.data(), st.sampled_from([0.5, 1.0, 1.5]), st.booleans())
def test_no_bet_on_events_can_be_expected_to_win_at_the_odds_it_is_against(
    count: int, data: st.DataObject, odds: float, below: bool
) -> None:
    canaries = data.draw(st.integers(1, count - 1))
    events = data.draw(st.integers(0, count))
    total = mean = 0.0
    for which in combinations(range(count), events):
        of_canary = sum(one < canaries for one in which)
        evidence = EventEvidence(odds, below=below)
        evidence.add(count - canaries, canaries, events - of_canary, of_canary)
        weight = odds**of_canary
        total += weight
        mean += weight * exp(evidence.log_capital)
    assert isclose(mean / total, 1.0, rel_tol=1e-9)


@given(st.floats(0.005, 0.5), st.integers(1, 5))
def test_no_bet_on_a_rate_can_be_expected_to_win_at_that_rate(rate: float, requests: int) -> None:
    mean = 0.0
    for pattern in range(2**requests):
        events = pattern.bit_count()
        evidence = RateEvidence(rate)
        evidence.add(requests, events)
        mean += exp(evidence.log_capital) * rate**events * (1 - rate) ** (requests - events)
    assert isclose(mean, 1.0, rel_tol=1e-9)


def test_capital_grows_when_the_canary_is_worse_and_shrinks_when_it_is_better() -> None:
    rng = random.Random(3)
    worse, better, harmless = RankEvidence(), RankEvidence(), RankEvidence(1.1, below=True)
    for _ in range(400):
        control = [rng.lognormvariate(0, 0.5) for _ in range(9)]
        value = rng.lognormvariate(0, 0.5)
        worse.add(control, [1.2 * value])
        better.add(control, [0.9 * value])
        harmless.add(control, [0.95 * value])
    assert exp(worse.log_capital) > 1000
    assert exp(better.log_capital) < 1
    assert exp(harmless.log_capital) > 100


def test_a_margin_is_what_the_canary_may_be_worse_by() -> None:
    rng = random.Random(4)
    strict, lenient = RankEvidence(), RankEvidence(1.3)
    for _ in range(600):
        strict.add([rng.lognormvariate(0, 0.3) for _ in range(9)], [1.25 * rng.lognormvariate(0, 0.3)])
        lenient.add([rng.lognormvariate(0, 0.3) for _ in range(9)], [1.25 * rng.lognormvariate(0, 0.3)])
    assert exp(strict.log_capital) > 1e6
    assert exp(lenient.log_capital) < 20


def test_events_and_rates() -> None:
    rng = random.Random(5)
    worse, harmless, rare = EventEvidence(), EventEvidence(2.0, below=True), RateEvidence(0.02)
    for _ in range(1500):
        controls = sum(rng.random() < 0.05 for _ in range(9))
        worse.add(9, 1, controls, rng.random() < 0.15)
        harmless.add(9, 1, controls, rng.random() < 0.05)
        rare.add(1, rng.random() < 0.002)
    assert exp(worse.log_capital) > 1000
    assert exp(harmless.log_capital) > 100
    assert exp(rare.log_capital) > 100
    rare.add(1, 1)  # what can't happen at a rate of 0 ends that bet, not the others
    assert exp(rare.log_capital) > 0


@pytest.mark.parametrize("make", [RankEvidence, EventEvidence, lambda state=None: RateEvidence(0.01, state=state)])
def test_evidence_goes_on_from_its_state(make: type[RankEvidence] | type[EventEvidence]) -> None:
    one = make()
    _feed(one)
    other = make(state=list(one.state))
    assert other.log_capital == one.log_capital
    _feed(one)
    _feed(other)
    assert other.log_capital == one.log_capital != 0


def _feed(evidence: Evidence) -> None:
    if isinstance(evidence, RankEvidence):
        evidence.add([1.0, 2.0, 3.0], [2.5, 4.0])
    elif isinstance(evidence, EventEvidence):
        evidence.add(7, 2, 1, 1)
    elif isinstance(evidence, RateEvidence):
        evidence.add(5, 0)
