"""Who may have requests."""

import pytest

from gateway.fleet.health import Health, Share

BOTH = ("a", "b")
FULL, NOTHING = Share(True, 1.0), Share(False, 1.0)


@pytest.fixture
def health() -> Health:
    health = Health()
    for name in BOTH:
        health.up(name, 0.0)
    return health


def fail(health: Health, name: str, now: float) -> None:
    for _ in range(3):
        health.failed(name, now)


def test_all_have_their_full_share_at_first(health: Health) -> None:
    assert health.shares(BOTH, 0.0) == {"a": FULL, "b": FULL}
    assert health.next_look(0.0) is None


def test_one_that_fails_again_and_again_gets_nothing_until_a_trial_succeeds(health: Health) -> None:
    health.failed("a", 1.0)
    health.failed("a", 1.0)
    health.answered("a", 1.0)
    health.failed("a", 1.0)
    assert health.shares(BOTH, 1.0)["a"].allowed, "not in a row"
    fail(health, "a", 1.0)
    assert health.shares(BOTH, 1.9) == {"a": NOTHING, "b": FULL}
    assert health.next_look(1.75) == 0.25
    assert health.shares(BOTH, 2.0)["a"].allowed
    health.sent("a")
    assert not health.shares(BOTH, 2.0)["a"].allowed, "one trial at a time"
    health.failed("a", 2.0)
    assert not health.shares(BOTH, 3.9)["a"].allowed, "twice as long as before"
    health.sent("a")
    health.given_up("a")
    assert health.shares(BOTH, 4.0)["a"].allowed
    health.sent("a")
    health.answered("a", 4.0)
    assert health.shares(BOTH, 4.0) == {"a": Share(True, 0.1), "b": FULL}


def test_where_all_fail_all_get_requests(health: Health) -> None:
    for name in BOTH:
        fail(health, name, 1.0)
    assert health.shares(BOTH, 1.5) == {"a": FULL, "b": FULL}
    health.up("c", 1.5)
    assert health.shares((*BOTH, "c"), 1.5) == {"a": NOTHING, "b": NOTHING, "c": FULL}


def test_one_that_comes_back_starts_slowly_beside_others(health: Health) -> None:
    health.up("a", 10.0)
    assert health.shares(BOTH, 10.0) == {"a": Share(True, 0.1), "b": FULL}
    assert health.next_look(10.0) == 0.25
    assert health.shares(BOTH, 12.5)["a"] == Share(True, 0.5)
    assert health.shares(["a"], 10.0) == {"a": FULL}, "alone it must do everything"
    assert health.shares(BOTH, 15.0) == {"a": FULL, "b": FULL}
    assert health.next_look(15.0) is None


def test_strangers_are_nobody(health: Health) -> None:
    health.failed("x", 0.0)
    health.answered("x", 0.0)
    health.sent("x")
    health.given_up("x")
    health.forget("x")
    health.forget("a")
    assert health.shares(["b"], 0.0) == {"b": FULL}
    assert health.shares([], 0.0) == {}
