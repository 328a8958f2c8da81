import random

import pytest

from gateway.traffic.rollout.blocks import LARGEST, LATE, SMALLEST, Blocks, Outcome


def an_outcome(uid: int) -> Outcome:
    return Outcome({"ttft": float(uid)})


def test_every_request_is_in_one_block_at_most_and_blocks_have_both_arms() -> None:
    rng = random.Random(1)
    blocks, seen = Blocks(), []
    for uid in range(2000):
        blocks.came(uid, rng.random() < 0.1, "", uid)
        blocks.ended(uid, an_outcome(uid))
        for block in blocks.compared(uid):
            assert block.control and block.canary
            assert len(block.control) + len(block.canary) >= SMALLEST
            seen += [one.values["ttft"] for one in (*block.control, *block.canary)]
    assert len(seen) == len(set(seen)) > 1500


def test_who_is_compared_with_whom_does_not_depend_on_who_is_first_to_answer() -> None:
    """A control that lags is compared with the canaries that came when it came: no fresh ones with old ones."""
    arms = [uid % 5 == 0 for uid in range(200)]
    orders = [list(range(200)), [*(u for u in range(200) if arms[u]), *(u for u in range(200) if not arms[u])]]
    results = []
    for order in orders:
        blocks = Blocks()
        for uid in range(200):
            blocks.came(uid, arms[uid], "", 0.0)
        for uid in order:
            blocks.ended(uid, an_outcome(uid))
        results.append(list(blocks.compared(1.0)))
    assert results[0] == results[1] != []


def test_a_block_waits_for_its_slowest_request_but_not_for_ever() -> None:
    blocks = Blocks()
    for uid in range(SMALLEST):
        blocks.came(uid, uid == 0, "", 10.0)
        if uid:
            blocks.ended(uid, an_outcome(uid))
    assert not list(blocks.compared(100.0))
    (block,) = blocks.compared(200.0)
    assert block.canary == [Outcome({"ttft": 190.0, "e2e": 190.0})]  # what it has waited at least
    assert not list(blocks.compared(300.0))
    blocks.ended(0, an_outcome(0))  # too late to count
    assert not list(blocks.compared(300.0))


def test_a_user_counts_once_in_ten_minutes() -> None:
    blocks = Blocks()
    for uid in range(100):
        blocks.came(uid, False, "heavy", uid)
        blocks.ended(uid, an_outcome(uid))
    for uid in range(100, 100 + SMALLEST):
        blocks.came(uid, True, f"user-{uid}", 100.0)
        blocks.ended(uid, an_outcome(uid))
    (block,) = blocks.compared(101.0)
    assert [one.values["ttft"] for one in block.control] == [0.0]
    blocks.came(200, False, "heavy", 700.0)
    blocks.ended(200, an_outcome(200))


def test_without_a_canary_nothing_is_compared_and_nothing_is_kept() -> None:
    blocks = Blocks()
    for uid in range(10 * LARGEST):
        blocks.came(uid, False, "", 0.0)
        blocks.ended(uid, an_outcome(uid))
    assert not list(blocks.compared(1e9))


def test_a_restart_begins_a_block_anew() -> None:
    blocks = Blocks()
    for uid in range(SMALLEST - 1):
        blocks.came(uid, False, "", 0.0)
    blocks.restart()
    blocks.came(99, True, "", 0.0)
    assert not list(blocks.compared(1e9))


def a_block(blocks: Blocks, *, slow: int | None = None) -> None:
    for uid in range(SMALLEST):
        blocks.came(uid, uid == 0, "", 10.0)
        if uid != slow:
            blocks.ended(uid, an_outcome(uid), f"req-{uid}")


def test_a_stream_that_takes_minutes_still_had_its_first_token_when_it_had() -> None:
    blocks = Blocks()
    a_block(blocks, slow=0)
    blocks.began(0, 0.25)
    blocks.began(99, 0.25)  # doesn't count
    (block,) = blocks.compared(200.0)
    assert block.canary == [Outcome({"ttft": 0.25, "e2e": 190.0})]


def test_what_comes_late_is_seen_in_the_second_place() -> None:
    blocks = Blocks(late=True)
    a_block(blocks)
    (first,) = blocks.compared(11.0)
    assert "feedback" not in first.canary[0].values
    assert blocks.add("req-0", "feedback", 1.0)
    assert blocks.add("req-0", "feedback", 0.5)  # a user may change their mind
    assert not blocks.add("req-99", "feedback", 1.0)
    assert not list(blocks.late(10.0 + LATE))
    (second,) = blocks.late(11.0 + LATE)
    assert second.canary == [Outcome({"ttft": 0.0, "feedback": 0.5})]
    assert not list(blocks.late(1e9)) and not blocks.add("req-0", "feedback", 1.0)


def test_without_need_nothing_is_kept_for_what_comes_late() -> None:
    blocks = Blocks()
    a_block(blocks)
    assert len(list(blocks.compared(11.0))) == 1
    assert not blocks.add("req-0", "feedback", 1.0)
    assert not list(blocks.late(1e9))


def test_memory_is_bounded_when_nothing_ever_ends_and_when_everybody_could_be_asked() -> None:
    blocks = Blocks(late=True)
    for uid in range(100_000):
        blocks.came(uid, uid % SMALLEST == 0, "", 0.0)
        if uid % 1000:
            blocks.ended(uid, Outcome({}), f"req-{uid}")
    assert len(blocks._closed) == 10_000
    assert len(blocks._ratable) == 50_000


def test_no_more_users_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.traffic.rollout.blocks._UNITS", 100)
    blocks = Blocks()
    for number in range(1000):
        blocks.came(2 * number, number % 2 == 0, f"u{number}", float(number))
        blocks.came(2 * number + 1, number % 2 == 0, f"u{number}", float(number))  # counts once
    assert len(blocks._seen) == 100 and len(blocks._members) == 1000
