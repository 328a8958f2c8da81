import math
import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.arrivals import (
    ClosedLoop,
    OpenLoop,
    Stretch,
    WorkloadError,
    parse_arrivals,
    parse_time,
)


def open_loop(text: str) -> OpenLoop:
    arrivals = parse_arrivals(text)
    assert isinstance(arrivals, OpenLoop)
    return arrivals


def test_a_constant_rate_begins_at_once_and_does_not_drift() -> None:
    times = list(open_loop("constant:7").times(seed=1, duration=1000))
    assert len(times) == 7000
    assert times == [index / 7 for index in range(7000)]


@pytest.mark.parametrize("text", ["poisson:50", "gamma:50,0.3", "gamma:50,4", "constant:50"])
def test_the_rate_comes_out_and_the_distances_vary_as_told(text: str) -> None:
    loop = open_loop(text)
    times = list(loop.times(seed=5, count=20_000))
    distances = [later - earlier for earlier, later in pairwise(times)]
    mean, varies = statistics.fmean(distances), 1 / math.sqrt(loop.burstiness)
    assert mean == pytest.approx(1 / 50, rel=4 * varies / math.sqrt(20_000) + 1e-9)
    assert statistics.stdev(distances) / mean == pytest.approx(varies, rel=0.06, abs=1e-6)


def test_a_ramp_has_its_integral_in_each_part_and_ends_by_itself() -> None:
    times = list(open_loop("ramp:10,90,100s").times(seed=2))
    assert times[-1] <= 100
    for begin in (0, 25, 50, 75):
        wanted = 25 * (10 + 0.8 * (begin + 12.5))
        found = sum(begin <= at < begin + 25 for at in times)
        assert abs(found - wanted) < 4 * math.sqrt(wanted)


@pytest.mark.parametrize(("text", "wanted"), [("ramp:0,40,50", 1000), ("ramp:40,0,50s", 1000), ("ramp:20,20,50", 1000)])
def test_a_ramp_may_start_or_end_at_nothing(text: str, wanted: int) -> None:
    times = list(open_loop(text).times(seed=3))
    assert times == sorted(times)
    assert abs(len(times) - wanted) < 4 * math.sqrt(wanted)


def test_steps_have_their_rates_and_may_pause() -> None:
    loop = open_loop("steps:20x50s,0x1m,80x50s")
    times = list(loop.times(seed=4))
    assert loop.seconds == 160
    assert abs(sum(at < 50 for at in times) - 1000) < 130
    assert not any(50 < at < 110 for at in times)
    assert abs(sum(at >= 110 for at in times) - 4000) < 260
    assert times[-1] <= 160


RATES = st.one_of(st.just(0.0), st.floats(1e-3, 1000))


@given(RATES, RATES, st.floats(0.1, 1e4), st.floats(1e-6, 1 - 1e-6))
def test_the_inverse_inverts_the_integrated_rate(start: float, end: float, seconds: float, part: float) -> None:
    if not start and not end:
        return
    stretch = Stretch(start, end, seconds)
    at = stretch.when(part * stretch.requests)
    assert 0 <= at <= seconds
    integral = start * at + (end - start) * at**2 / (2 * seconds)
    assert integral == pytest.approx(part * stretch.requests, rel=1e-6)


def test_the_first_moment_of_a_ramp_from_nothing() -> None:
    assert Stretch(0.0, 1.0, 10.0).when(5e-324) < 1e-100


FORMS = st.one_of(
    st.floats(0.1, 500).map(lambda rate: f"poisson:{rate}"),
    st.floats(0.1, 500).map(lambda rate: f"constant:{rate}"),
    st.tuples(st.floats(0.1, 500), st.floats(0.1, 20)).map(lambda two: f"gamma:{two[0]},{two[1]}"),
    st.tuples(st.floats(0, 50), st.floats(0.1, 50)).map(lambda two: f"ramp:{two[0]},{two[1]},20s"),
    st.lists(st.floats(0.1, 50), min_size=1, max_size=4).map(lambda r: "steps:" + ",".join(f"{x}x5s" for x in r)),
)


@given(FORMS, st.integers(0, 2**64), st.integers(0, 200), st.floats(0.01, 30))
def test_times_ascend_within_their_bounds_and_are_the_seeds(text: str, seed: int, count: int, duration: float) -> None:
    times = list(open_loop(text).times(seed, count, duration))
    assert len(times) <= count
    assert all(0 <= at < duration for at in times)
    assert times == sorted(times)
    assert times == list(open_loop(text).times(seed, count, duration))


def test_another_seed_is_another_series() -> None:
    loop = open_loop("poisson:3")
    assert list(islice(loop.times(1), 5)) != list(islice(loop.times(2), 5))


def test_faster_has_the_same_length_and_more_requests() -> None:
    loop = open_loop("steps:2x30s,8x30s").faster(4)
    assert loop.seconds == 60
    assert sum(stretch.requests for stretch in loop.stretches) == 1200
    assert loop.title == "steps 2x30s, 8x30s x 4"


def test_a_closed_loop_has_no_schedule() -> None:
    assert parse_arrivals("closed:32") == ClosedLoop(32)
    assert ClosedLoop(32).title == "closed loop of 32"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("poisson", "write poisson:RATE"),
        ("often:3", "write constant:RATE, poisson:RATE,"),
        ("", "or closed:CONCURRENCY"),
        ("poisson:fast", "rate 'fast' is no number"),
        ("poisson:nan", "rate 'nan' is no number"),
        ("constant:0", "nothing is ever sent"),
        ("constant:-1", "a rate is requests per second, 0 or more"),
        ("gamma:5", "write gamma:RATE,BURSTINESS"),
        ("gamma:5,0", "a burstiness is above 0 (1 is Poisson"),
        ("ramp:1,20", "write ramp:FROM,TO,TIME"),
        ("ramp:1,20,1 fortnight", "write 90, 90s, 500ms, 1.5m or 1h"),
        ("steps:2", "a step is RATExTIME, such as 8x30s, not '2'"),
        ("steps:2x0s", "'0s' is no time above 0"),
        ("closed:0", "a whole number of requests at a time, 1 or more, not '0'"),
        ("closed:2.5", "not '2.5'"),
    ],
)
def test_errors_say_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(WorkloadError) as error:
        parse_arrivals(text)
    assert says in str(error.value)


def test_times_have_units() -> None:
    assert [parse_time(text) for text in ("90", "90s", "500ms", "1.5m", "2min", "1h", ".5 s")] == [
        90,
        90,
        0.5,
        90,
        120,
        3600,
        0.5,
    ]
