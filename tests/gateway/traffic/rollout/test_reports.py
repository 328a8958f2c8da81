"""What other processes saw is evidence, as if all requests had come to the one that leads, and as valid."""

import asyncio
import random
from typing import Any

from gateway.traffic.ending import Ending
from gateway.traffic.rollout.blocks import SMALLEST, Blocks, Outcome
from gateway.traffic.rollout.reports import Began, Came, Ended, Reporting, short
from gateway.traffic.rollout.service import Rollouts
from tests.gateway.traffic.rollout.test_service import Clock, a_plan, only

OK = Outcome({"ttft": 0.1})


class Told:
    """In place of the way to the leader: what is told is taken there at once, or when it is told to."""

    def __init__(self) -> None:
        self.on_loss: list[Any] = []
        self.reports: list[Came | Began | Ended] = []

    def tell(self, report: Came | Began | Ended) -> None:
        self.reports.append(report)

    def bring(self, leader: Rollouts, process: int) -> None:
        for report in self.reports:
            leader.take(process, report)
        self.reports.clear()


class Together:
    """A leader and some processes that follow, to all of which requests for the model ``chat`` come."""

    def __init__(self, followers: int, *guards: str, **config: Any) -> None:
        self.clock = Clock()
        self.plan = a_plan(*guards, **config)
        self.leader = Rollouts(None, self.clock, followed=True)
        self.told: list[Any] = [Told() for _ in range(followers)]
        self.followers = [Rollouts(None, self.clock, leads=False, to_leader=told) for told in self.told]
        for one in self.all:
            one.change({"chat": self.plan})
            if one._reporting is not None:
                one._reporting._clock = self.clock  # not all of these requests come at once
        self.random = random.Random(1)
        self.uid = 0

    @property
    def all(self) -> list[Rollouts]:
        return [self.leader, *self.followers]

    def send(self, count: int, slower: float = 1.0, unit: str = "") -> None:
        """Have so many requests come to each process."""
        for _ in range(count):
            self.clock.now += 1.0
            for one in self.all:
                self.uid += 1
                canary = self.random.random() * 100 < (self.leader.weight("chat") or 0.0)
                one.came("chat", self.uid, canary, unit)
                ttft = self.random.lognormvariate(0, 0.3) * (slower if canary else 1.0)
                one.ended("chat", self.uid, Ending(200, "ok", ttft=ttft, e2e=2 * ttft, output_tokens=7), f"r{self.uid}")
            self.bring()

    def bring(self) -> None:
        for number, told in enumerate(self.told, 1):
            told.bring(self.leader, number)
        self.leader.look()


def requests_to_verdict(followers: int) -> int:
    """The requests to one process, before the canary was rolled back."""
    together = Together(followers, "ttft", steps=(25, 100))
    for count in range(4000):
        if together.leader.weight("chat") == 0:
            return count
        together.send(1, slower=1.5)
    raise AssertionError("no verdict")


def test_the_verdict_does_not_wait_for_the_requests_of_one_process() -> None:
    assert requests_to_verdict(3) <= requests_to_verdict(0) / 2


def test_all_requests_count() -> None:
    together = Together(3, steps=(25, 100), dwell=1e6)
    together.send(200)
    shown = only(together.leader)
    assert shown.controls + shown.canaries > 0.95 * together.uid
    assert only(together.followers[0]).controls == 0  # until it reads what the leader saves


def test_who_comes_to_several_processes_counts_once() -> None:
    together = Together(3, steps=(25, 100), dwell=1e6)
    for user in range(100):
        together.send(1, unit=f"user-{user}" + "x" * 100)
    shown = only(together.leader)
    assert 80 < shown.controls + shown.canaries <= 100
    assert all(len(short(unit)) <= 64 for unit in ("", "ada", "é" * 65, "\ud800" * 1000))


def test_what_was_drawn_with_another_weight_or_for_another_rollout_does_not_count() -> None:
    together = Together(1, steps=(25, 100), dwell=1e6)
    follower, told = together.followers[0], together.told[0]
    follower.came("chat", 1, True, "")
    (right,) = told.reports
    assert isinstance(right, Came)
    follower.change({"chat": a_plan(steps=(50, 100), dwell=1e6)})
    follower.came("chat", 2, True, "")
    follower.change({"chat": a_plan(steps=(25, 100), dwell=1e6, what="adapter 13")})
    follower.came("chat", 3, True, "")
    follower.came("unheard of", 4, True, "")
    told.bring(together.leader, 1)
    members = together.leader._entries["chat"].rollout._blocks._members
    assert list(members) == [(1, 1)]


def test_a_process_that_goes_takes_whole_blocks_with_it() -> None:
    blocks = Blocks()
    for uid in range(3 * SMALLEST):
        blocks.came((uid % 2, uid), uid % SMALLEST == 0, "", 0.0)
        if uid != SMALLEST + 1:  # process 1 has one under way, in the second block
            blocks.ended((uid % 2, uid), Outcome({"ttft": float(uid)}))
    blocks.lose(1)
    blocks.lose(2)
    found = [{one.values["ttft"] for one in (*block.control, *block.canary)} for block in blocks.compared(500.0)]
    assert found == [set(range(SMALLEST)), set(range(2 * SMALLEST, 3 * SMALLEST))]
    blocks.ended((1, SMALLEST + 1), OK)  # another connection may not have the same numbers, but nothing would happen
    assert not list(blocks.compared(1000.0))


def test_what_was_under_way_when_a_connection_ended_is_heard_of_no_more() -> None:
    together = Together(1, steps=(25, 100), dwell=1e6)
    follower, told = together.followers[0], together.told[0]
    for uid in range(3):
        follower.came("chat", uid, False, "")
    follower.ended("chat", 0, Ending(200, "ok"))
    told.bring(together.leader, 1)
    follower.ended("chat", 1, Ending(200, "ok"))
    waiting, told.reports = told.reports, []
    for lose in told.on_loss:
        lose(waiting)
    together.leader.lose(1)
    assert follower.untold == 2  # 1, of whose end the leader didn't hear, and 2
    follower.ended("chat", 2, Ending(200, "ok"))
    follower.began("chat", 2, 0.1)
    assert told.reports == []
    assert together.leader.untold == 0


def test_the_leader_is_told_of_some_requests_where_there_are_too_many() -> None:
    now = 100.0
    told: list[Any] = []
    reporting = Reporting(told.append, lambda: now)
    for uid in range(250):
        reporting.came(uid, "chat", "x 5", uid % 9 == 0, "")
        reporting.began(uid, "chat", 0.1)
        reporting.ended(uid, "chat", OK, "")
    assert reporting.untold == 200 and len(told) == 150
    now += 0.2
    reporting.came(250, "chat", "x 5", False, "")
    assert told[-1] == Came(250, "chat", "x 5", False, "")


def test_feedback_counts_whoever_has_answered_even_if_it_is_quicker_than_the_report() -> None:
    async def scenario() -> None:
        together = Together(1, "feedback", steps=(50, 100), dwell=1e6)
        follower, told = together.followers[0], together.told[0]
        assert not await together.leader.rate("r1", 1.0)
        follower.came("chat", 1, True, "")
        told.bring(together.leader, 1)
        follower.ended("chat", 1, Ending(200, "ok"), "r1")
        rating = asyncio.create_task(together.leader.rate("r1", 1.0))
        await asyncio.sleep(0)
        told.bring(together.leader, 1)
        assert await rating
        together.leader.lose(1)
        assert await together.leader.rate("r1", 0.0)  # what has ended still counts

    asyncio.run(scenario())


def test_names_are_told_of_only_where_somebody_may_rate() -> None:
    for guard, name in (("feedback", "r1"), ("error_rate", "")):
        together = Together(1, guard, steps=(50, 100))
        follower, told = together.followers[0], together.told[0]
        follower.came("chat", 1, True, "")
        follower.ended("chat", 1, Ending(200, "ok"), "r1")
        ended = told.reports[-1]
        assert isinstance(ended, Ended) and ended.name == name
