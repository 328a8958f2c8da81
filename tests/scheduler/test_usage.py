"""`scheduler.usage`: who is ahead, and how that is forgotten."""

import pytest

from scheduler.usage import Usage


def test_alone_nobody_is_ahead() -> None:
    usage = Usage(0)
    assert not usage.ahead("a")
    usage.charge("a", 1e6)
    assert not usage.ahead("a")


def test_clearly_more_than_the_mean_is_ahead() -> None:
    usage = Usage(0)
    for tenant in "abc":
        usage.charge(tenant, 100)
    assert not any(map(usage.ahead, "abcd"))
    usage.charge("a", 74)
    assert not usage.ahead("a")
    usage.charge("a", 30)
    assert usage.ahead("a") and not usage.ahead("b")


def test_a_little_more_is_no_matter() -> None:
    usage = Usage(100)
    usage.charge("a", 99)
    usage.charge("b", 0)
    assert not usage.ahead("a")
    usage.charge("a", 400)
    assert usage.ahead("a")


def test_what_was_long_ago_is_forgotten() -> None:
    usage = Usage(0)
    usage.charge("a", 1000)
    usage.charge("b", 100)
    assert usage.ahead("a")
    usage.advance(120.0)
    usage.charge("b", 100)
    assert not usage.ahead("a")


def test_the_sum_stays_true_and_memory_bounded() -> None:
    usage = Usage(0)
    for turn in range(20_000):
        usage.advance(0.1 * turn)
        usage.charge(str(turn), 10)
    assert len(usage._had) < 2500
    assert usage._total == pytest.approx(sum(usage._had.values()))
