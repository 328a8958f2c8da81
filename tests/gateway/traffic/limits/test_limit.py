"""Rates and amounts as operators write them."""

import pytest

from gateway.traffic.limits.limit import NO_LIMITS, Limits, Rate, parse_amount, parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("600/min", Rate(600, 60)),
        ("200k/min", Rate(200_000, 60)),
        (" 1.5 M / h ", Rate(1_500_000, 3600)),
        ("10/s", Rate(10, 1)),
        ("1/minute", Rate(1, 60)),
    ],
)
def test_rates(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate
    assert repr(parse_rate(text)) == f"Rate({rate.amount}, {rate.seconds})"
    assert len({parse_rate(text), rate}) == 1


@pytest.mark.parametrize("text", ["600", "600/day", "/min", "-1/min", "0/min", "ten/min", "1e3/min", "2G/s", "2000G/s"])
def test_what_is_no_rate_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_rate(text)


def test_amounts() -> None:
    assert [parse_amount(text) for text in ("7", "200k", "1.5M", "2g")] == [7, 200_000, 1_500_000, 2_000_000_000]
    with pytest.raises(ValueError, match="no amount above 0"):
        parse_amount("0.1")


def test_limits_are_true_if_there_is_one() -> None:
    assert not NO_LIMITS
    assert not Limits()
    assert Limits(concurrent=1)
    assert Rate(1, 60) != "1/min"
