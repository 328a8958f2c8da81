"""`scheduler.admission`: expected lengths and the pool's peak."""

from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.admission import Forecast, OutputLengths
from tests.scheduler.simulation import make_request


def lengths_of(*seen: int, window: int = 1024) -> OutputLengths:
    lengths = OutputLengths(window)
    for length in seen:
        lengths.observe(length)
    return lengths


def test_a_prior_before_data_capped_by_what_may_be_drawn() -> None:
    lengths = OutputLengths()
    assert 16 <= lengths.remaining([make_request(1, 5, output=10_000)], 0.5)[0] <= 1024
    assert lengths.remaining([make_request(1, 5, output=3)], 0.5) == [3]


def test_the_window_forgets_the_prior_and_the_past() -> None:
    lengths = lengths_of(*[1000] * 5, *range(10, 20), window=10)
    fresh = make_request(1, 5, output=10_000)
    assert lengths.remaining([fresh], 0.0) == [10]
    assert lengths.remaining([fresh], 0.5) == [15]
    assert lengths.remaining([fresh], 0.99) == [19]


def test_expectation_grows_with_what_was_drawn() -> None:
    lengths = lengths_of(*[10] * 50, *[100] * 50, window=100)
    request = make_request(1, 5, output=10_000)
    assert lengths.remaining([request], 0.25) == [10]
    request.tokens += [0] * 10
    assert lengths.remaining([request], 0.25) == [90]
    request.tokens += [0] * 100
    assert lengths.remaining([request], 0.25) == [56]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seen=st.lists(st.integers(1, 300), min_size=1, max_size=80),
    drawn=st.integers(0, 200),
    quantile=st.floats(0, 0.99),
    window=st.integers(8, 40),
)
def test_the_quantile_is_that_of_the_longer_answers(seen: list[int], drawn: int, quantile: float, window: int) -> None:
    lengths = lengths_of(*seen, window=window)
    latest = sorted([16, 32, 64, 128, 256, 512, 1024, *seen][-window:])
    longer = latest[bisect_right(latest, drawn) :]
    expected = longer[int(quantile * len(longer))] - drawn if longer else drawn // 2 + 1
    request = make_request(1, 5, output=10_000)
    request.tokens += [0] * drawn
    assert lengths.remaining([request], quantile) == [expected]


running = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 60)), max_size=8)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(jobs=running, candidate=st.tuples(st.integers(0, 8), st.integers(1, 60)), total=st.integers(1, 60))
def test_admits_exactly_what_a_simulation_of_the_pool_can_hold(
    jobs: list[tuple[int, int]], candidate: tuple[int, int], total: int
) -> None:
    """With blocks of one token and known lengths: run everybody token by token and look at the peak."""
    requests = []
    for uid, (own, output) in enumerate([*jobs, candidate]):
        request = make_request(uid, 5, output=output)
        request.blocks = list(range(own))
        requests.append(request)
    *alive, newcomer = requests
    used = sum(len(request.blocks) for request in requests)
    # A prior that always says more than may be drawn: what may be drawn is what is expected.
    lengths = lengths_of(*[1000] * 8, window=8)
    admitted = Forecast(alive, lengths, 0.5, 1).admit(newcomer, len(newcomer.blocks), used, total)

    peak, held = 0, [[len(request.blocks), request.max_tokens] for request in requests]
    while held:
        held = [[blocks + 1, left - 1] for blocks, left in held]
        peak = max(peak, sum(blocks for blocks, _ in held))
        held = [[blocks, left] for blocks, left in held if left]
    assert admitted == (peak <= total)


def test_who_was_refused_does_not_count_and_who_was_admitted_does() -> None:
    lengths = lengths_of(*[1000] * 8, window=8)
    forecast = Forecast([], lengths, 0.5, 1)
    assert not forecast.admit(make_request(1, 5, output=50), 10, 10, 40)
    assert forecast.admit(make_request(2, 5, output=20), 10, 10, 40)
    assert not forecast.admit(make_request(3, 5, output=11), 10, 20, 40)
