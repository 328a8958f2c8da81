import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.histogram import RELATIVE_ERROR, SMALLEST, Histogram

SHARES = [0.0, 0.5, 0.9, 0.99, 0.999, 1.0]
values = st.lists(st.floats(0, 1e6) | st.just(0.0) | st.floats(0, 1e-5), min_size=1, max_size=200)


def of(items: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.add_all(items)
    return histogram


@given(values)
def test_quantiles_are_within_the_stated_error(items: list[float]) -> None:
    ordered = sorted(items)
    for share, found in zip(SHARES, of(items).quantiles(SHARES), strict=True):
        true = ordered[max(0, math.ceil(share * len(items) - 1e-9) - 1)]
        assert found == pytest.approx(true, rel=RELATIVE_ERROR * 1.001, abs=SMALLEST)


@given(values, values)
def test_a_merged_histogram_is_that_of_all(first: list[float], second: list[float]) -> None:
    both, merged = of(first + second), of(first).merge([of(second), Histogram()])
    assert (merged.counts, merged.total, merged.low, merged.high) == (both.counts, both.total, both.low, both.high)
    assert merged.sum == pytest.approx(both.sum)


@given(values)
def test_one_by_one_is_the_same_as_all_at_once(items: list[float]) -> None:
    single = Histogram()
    for item in items:
        single.add(item)
    assert (single.counts, single.low, single.high) == (of(items).counts, of(items).low, of(items).high)
    assert single.mean == pytest.approx(of(items).mean)


@given(values)
def test_it_goes_through_json(items: list[float]) -> None:
    histogram = of(items)
    assert msgspec.json.decode(msgspec.json.encode(histogram), type=Histogram) == histogram


def test_an_empty_one() -> None:
    assert math.isnan(Histogram().mean)
    assert math.isnan(Histogram().quantile(0.5))
    assert msgspec.json.decode(msgspec.json.encode(Histogram()), type=Histogram) == Histogram()


def test_several_of_one_value_and_what_is_below_zero() -> None:
    histogram = Histogram()
    histogram.add(2.0, 3)
    histogram.add(-1.0)
    histogram.add(5.0, 0)
    assert (histogram.total, histogram.low, histogram.high, histogram.mean) == (4, 0.0, 2.0, 1.5)
    assert histogram.quantiles([0.25, 0.5]) == [0.0, pytest.approx(2.0, rel=RELATIVE_ERROR)]


def test_it_stays_small() -> None:
    rng = random.Random(0)
    histogram = of([rng.lognormvariate(-3, 1) for _ in range(100_000)])
    assert len(histogram.counts) < 2000
