import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.arrivals import WorkloadError
from bench.load.lengths import fixed, parse_distribution


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("512", 512, 0),
        ("uniform:100,1100", 600, 288.7),
        ("normal:500,50", 500, 50),
        ("lognormal:220,0.5", 220, 117.2),
        ("exponential:5", 5, 5),
    ],
)
def test_mean_and_deviation_come_out(text: str, mean: float, deviation: float) -> None:
    draw = parse_distribution(text).sampler(7, "test")
    drawn = [draw() for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.03)
    assert statistics.pstdev(drawn) == pytest.approx(deviation, rel=0.05)


def test_uniform_has_both_ends_and_whole_numbers_only_between_whole_ones() -> None:
    draw = parse_distribution("uniform:2,4").sampler(1, "turns")
    assert {draw() for _ in range(200)} == {2, 3, 4}
    draw = parse_distribution("uniform:0.5,1.5").sampler(1, "think")
    assert len({draw() for _ in range(200)}) == 200


@given(
    st.sampled_from(["normal:100,400", "lognormal:100,2", "exponential:100", "uniform:0,9000", "3"]),
    st.integers(1, 50),
    st.integers(0, 500),
    st.integers(0, 2**40),
)
def test_what_is_drawn_stays_within_its_bounds_and_is_the_seeds(text: str, low: int, more: int, seed: int) -> None:
    distribution = parse_distribution(f"{text},min={low},max={low + more}")
    draw, again = distribution.counts(seed, "a"), distribution.counts(seed, "a")
    drawn = [draw() for _ in range(20)]
    assert all(low <= length <= low + more for length in drawn)
    assert drawn == [again() for _ in range(20)]


def test_counts_are_whole_and_at_least_one() -> None:
    draw = parse_distribution("normal:1,5").counts(1, "input")
    drawn = [draw() for _ in range(300)]
    assert min(drawn) == 1
    assert all(isinstance(length, int) for length in drawn)


def test_series_of_other_names_are_independent() -> None:
    distribution = parse_distribution("exponential:5")
    one, other = distribution.sampler(1, "input"), distribution.sampler(1, "output")
    assert [one() for _ in range(3)] != [other() for _ in range(3)]


def test_a_trace_gives_its_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,396,109\n"
    )
    drawn = {side: parse_distribution(f"trace:{trace}", side).counts(1, side) for side in ("input", "output")}
    assert {drawn["input"]() for _ in range(50)} == {374, 396}
    assert {drawn["output"]() for _ in range(50)} == {44, 109}
    clipped = parse_distribution(f"trace:{trace},max=380").counts(1, "input")
    assert {clipped() for _ in range(50)} == {374, 380}


def test_titles() -> None:
    assert fixed(512).title == parse_distribution("512").title == "512"
    assert parse_distribution("lognormal:220,1.0,max=2048").title == "lognormal:220,1.0,max=2048"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("many", "'many' is no number of 0 or more"),
        ("", "a number is missing: write N, uniform:FROM,TO"),
        ("uniform:5", "write N, uniform:FROM,TO"),
        ("uniform:9,5", "the first number is the lowest: write uniform:5,9"),
        ("normal:5,-1", "'-1' is no number of 0 or more"),
        ("lognormal:0,1", "a mean is above 0"),
        ("exponential:0", "a mean is above 0"),
        ("zipf:3", "lognormal:MEAN,SIGMA"),
        ("5,min=9,max=3", "min is above max"),
        ("trace:", "trace:FILE"),
        ("trace:/no/such/file", "/no/such/file: No such file or directory"),
    ],
)
def test_errors_say_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(WorkloadError) as error:
        parse_distribution(text)
    assert says in str(error.value)
