"""`scheduler.placement.backlog`: what is left at a worker, and for whom a newcomer would wait."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.placement.backlog import Backlog


@dataclass(eq=False)
class Prompt:
    left: float


def backlog(*lefts: float, shortest_first: bool = False) -> Backlog:
    made = Backlog(shortest_first=shortest_first, now=0.0)
    for left in lefts:
        made.add(Prompt(left), 0.0)
    return made


def test_all_are_ahead_where_prompts_are_read_as_they_come() -> None:
    queue = backlog(3.0, 1.0)
    assert queue.ahead(0.5) == queue.ahead(9.0) == 4.0
    assert queue.overtaken(0.5) == 0


def test_the_shorter_ones_are_ahead_where_these_come_first() -> None:
    queue = backlog(3.0, 1.0, 2.0, shortest_first=True)
    assert [queue.ahead(seconds) for seconds in (0.5, 1.0, 2.5, 3.0)] == [0.0, 1.0, 3.0, 6.0]
    assert [queue.overtaken(seconds) for seconds in (0.5, 1.0, 2.5, 3.0)] == [3, 2, 1, 0]


def test_time_is_spent_on_the_first_ones() -> None:
    queue = backlog(3.0, 1.0, shortest_first=True)
    queue.advance(1.5)
    assert queue.ahead(0.0) == 0.0 and queue.ahead(2.4) == 0.0 and queue.ahead(2.5) == 2.5
    assert queue.total(9.0) == 0.0


def test_what_nobody_expected_is_the_longest_ones() -> None:
    queue = backlog(3.0, 1.0, shortest_first=True)
    assert queue.grow(2.0) == 0.0
    assert queue.ahead(1.0) == 1.0 and queue.ahead(5.0) == 6.0
    assert backlog(3.0).grow(2.0) == 2.0
    assert backlog(shortest_first=True).grow(2.0) == 2.0


def test_what_is_known_to_be_done_is_not_left() -> None:
    queue = backlog(3.0, 1.0)
    queue.at_most(1.5, 0.0)
    assert queue.total(0.0) == pytest.approx(1.5)
    queue.at_most(2.0, 0.0)
    assert queue.total(0.0) == pytest.approx(1.5)


LEFTS = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=20)


@given(LEFTS, st.lists(st.floats(0.0, 30.0), max_size=5), st.floats(0.0, 200.0), st.booleans())
def test_nothing_gets_lost(lefts: list[float], waits: list[float], seconds: float, shortest_first: bool) -> None:
    queue = Backlog(shortest_first=shortest_first, now=0.0)
    prompts = [Prompt(left) for left in lefts]
    for prompt in prompts:
        queue.add(prompt, 0.0)
    now = 0.0
    for wait in waits:
        now += wait
        queue.advance(now)
    left = sum(prompt.left for prompt in prompts)
    assert left == pytest.approx(max(0.0, sum(lefts) - now), abs=1e-6)
    behind = sum(prompt.left for prompt in prompts if prompt.left > seconds)
    expected = left - behind if shortest_first else left
    assert queue.ahead(seconds) == pytest.approx(expected, abs=1e-6)
    for prompt in prompts:
        queue.remove(prompt, now)
    assert len(queue) == 0 and queue.ahead(seconds) == 0.0
