import math
from statistics import NormalDist

import numpy as np
import pytest

from bench.load import statistics
from bench.load.statistics import Estimate, block_length, difference, draw, holm, percentiles, rate, share
from tests.bench.load.made import autoregressive

SERIES, LENGTH, MEMORY = 150, 400, 0.7
QUANTILES = (0.5, 0.9)


def estimates() -> list[list[Estimate]]:
    rng, owners = np.random.default_rng(0), np.arange(LENGTH)
    series = np.exp(autoregressive(SERIES, LENGTH, MEMORY))
    return [percentiles(one, owners, QUANTILES, rng, replicates=200) for one in series]


def coverage(found: list[list[Estimate]]) -> list[float]:
    """How often the intervals hold the truth, a share for each quantile."""
    shares = []
    for place, quantile in enumerate(QUANTILES):
        truth = math.exp(NormalDist().inv_cdf(quantile))
        intervals = [row[place].interval() for row in found]
        shares.append(sum(low <= truth <= high for low, high in intervals) / len(intervals))
    return shares


@pytest.fixture(scope="module")
def found() -> list[list[Estimate]]:
    return estimates()


def test_intervals_of_dependent_requests_hold_the_truth_about_as_often_as_they_say(found: list[list[Estimate]]) -> None:
    assert all(0.89 <= one <= 0.99 for one in coverage(found))


def test_intervals_that_took_requests_as_independent_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "block_length", lambda series: 1)
    assert all(one < 0.85 for one in coverage(estimates()))


def test_two_runs_of_one_truth_are_seldom_told_apart(found: list[list[Estimate]]) -> None:
    for place in range(len(QUANTILES)):
        pairs = zip(found[1:], found, strict=False)
        false = [difference(a[place], b[place]).p_value() < 0.05 for a, b in pairs]
        assert np.mean(false) <= 0.1


def test_a_p_value_is_small_where_the_interval_leaves_out_zero() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-4, 4, 17):
        one = Estimate(float(shift), rng.normal(shift, 1, 20000), 10, 12, True)
        low, high = one.interval()
        if min(abs(low), abs(high)) > 0.1:  # where they are close to 0, chance decides
            assert (one.p_value() < 0.05) == (low > 0 or high < 0)


def test_a_real_difference_is_found() -> None:
    values = np.exp(autoregressive(2, 2000, 0.5))
    rng, owners = np.random.default_rng(0), np.arange(2000)
    a, b = (percentiles(one, owners, [0.5], rng)[0] for one in (values[0], values[1] * 1.5))
    found = difference(a, b)
    assert found.enough
    assert found.p_value() < 0.001
    assert found.interval().low > 0


def test_values_of_many_owners_and_many_requests_have_the_exact_quantile() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 1, 30_000)
    found = percentiles(values, np.repeat(np.arange(6000) * 2, 5), [0.5, 0.99], rng)
    exact = np.quantile(values, [0.5, 0.99], method="inverted_cdf")
    assert [one.value for one in found] == exact.tolist()
    for one in found:
        assert abs(float(one.replicates.mean()) / one.value - 1) < 0.02
        assert one.enough
    spread = math.sqrt(0.25 / 30_000) / NormalDist().pdf(0)
    assert found[0].replicates.std() == pytest.approx(spread, rel=0.25)


def test_a_percentile_with_hardly_anything_beyond_it_is_not_enough() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 1, 500)
    median, high = percentiles(values, np.arange(500), [0.5, 0.99], rng)
    assert median.enough
    assert not high.enough


def test_a_long_memory_leaves_little_to_judge_by() -> None:
    [values] = np.exp(autoregressive(1, 300, 0.98))
    assert not percentiles(values, np.arange(300), [0.5], np.random.default_rng(0))[0].enough


def test_nothing_has_no_figure() -> None:
    rng, empty = np.random.default_rng(0), np.empty(0)
    [one] = percentiles(empty, np.empty(0, dtype=np.int64), [0.5], rng)
    for found in (one, share(np.empty(0, dtype=np.bool_), rng), rate(empty, empty, 0.0, rng)):
        assert math.isnan(found.value)
        assert math.isnan(found.interval().low)
        assert math.isnan(found.p_value())
        assert not found.enough


def test_blocks_are_as_long_as_the_memory_asks_for() -> None:
    lengths = [block_length(autoregressive(1, 4000, memory)[0]) for memory in (0.0, 0.5, 0.9)]
    assert lengths[0] <= 5
    assert lengths[0] < lengths[1] < lengths[2]
    assert block_length(np.ones(100)) == 1
    assert block_length(np.arange(5.0)) == 1
    assert block_length(np.arange(300.0)) <= 100


@pytest.mark.parametrize(("count", "block"), [(10, 1), (10, 3), (7, 7), (1, 1)])
def test_every_replicate_has_as_many_as_the_run_and_all_are_alike(count: int, block: int) -> None:
    times = draw(count, block, np.random.default_rng(0), replicates=4000)
    assert times.shape == (4000, count)
    assert (times.sum(axis=1) == count).all()
    assert np.allclose(times.mean(axis=0), 1, atol=0.15)


def test_a_share_and_a_rate() -> None:
    rng = np.random.default_rng(0)
    flags = rng.random(5000) < 0.2
    found = share(flags, rng)
    assert found.value == flags.mean()
    assert found.replicates.std() == pytest.approx(math.sqrt(0.16 / 5000), rel=0.25)
    times = np.cumsum(rng.exponential(0.1, 3000))
    requests = rate(times, np.ones(3000), float(times[-1]), rng)
    assert requests.value == pytest.approx(10, rel=0.1)
    assert requests.interval().low < 10 < requests.interval().high
    assert requests.replicates.std() == pytest.approx(math.sqrt(3000) / float(times[-1]), rel=0.3)


def test_holm_asks_more_of_each_the_more_are_asked() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (7, 2.3646), (30, 2.0423), (1e6, 1.96)])
def test_students_distribution(freedom: float, quantile: float) -> None:
    assert statistics.student_quantile(0.975, freedom) == pytest.approx(quantile, rel=2e-3)
    assert statistics.student_tail(quantile, freedom) == pytest.approx(0.025, rel=2e-3)
