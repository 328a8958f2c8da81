"""OpenAI's headers and errors."""

import math

import pytest

from gateway.traffic.limits.contract import Granted, Refused, Reservation, Standing, Unknown
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.headers import duration, limit_error, rate_headers


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (72, "1m12s"),
        (360, "6m0s"),
        (90.5, "1m30.5s"),
        (3600, "1h0m0s"),
        (86_399.25, "23h59m59.25s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_headers_of_what_is_limited_only() -> None:
    reservation = Reservation(LocalStore(), (), 0)
    both = Granted(reservation, Standing(5000, 4999, 0.012), Standing(160_000, 159_976, 0.009))
    assert rate_headers(both) == {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-limit-tokens": "160000",
        "x-ratelimit-remaining-tokens": "159976",
        "x-ratelimit-reset-tokens": "9ms",
    }
    assert rate_headers(Granted(reservation, None, None)) == {}
    assert Unknown("why").reason == "why"


def test_the_error_has_openais_shape_and_says_when_to_try_again() -> None:
    error = limit_error(Refused("requests", 3, 3, 1, 19.2, Standing(3, 0, 60)))
    assert (error.status, error.code, error.detail.type) == (429, "rate_limit_exceeded", "requests")
    assert error.message.endswith("on requests: Limit 3, Used 3, Requested 1. Please try again in 19.2s.")
    assert error.headers["retry-after"] == "20"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"


def test_what_can_never_succeed_has_no_time_to_try_again() -> None:
    error = limit_error(Refused("tokens", 1000, 0, 4096, math.inf))
    assert "retry-after" not in error.headers
    assert "lower max_tokens" in error.message


def test_a_days_budget_is_a_quota() -> None:
    error = limit_error(Refused("day", 1000, 1000, 1, 7200))
    assert (error.code, error.detail.type) == ("insufficient_quota", "insufficient_quota")
    assert error.headers["retry-after"] == "7200"
