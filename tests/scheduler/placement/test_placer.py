"""`scheduler.placement.placer`: who goes where, in which order, and what is left when they have gone."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.placement import POLICIES, Job, Placed, PlacementConfig, Placer, Refused, Report
from scheduler.placement import placer as placer_
from scheduler.prefix_index import chain
from tests.scheduler.placement.fleets import ask, fleet, info, job, where

PREFIX = range(1, 51)


def test_held_jobs_go_when_a_worker_has_next_to_nothing_left() -> None:
    placer = fleet(workers=1)
    assert ask(placer, 0.0, job(1, 1000)) == {1: "a"}
    assert ask(placer, 0.0, job(2, 2000)) == {2: "a"}
    # 0.3 s are left there now.
    assert ask(placer, 0.0, job(3, 500)) == {}
    assert placer.waiting == 1
    look = placer.next_look(0.0)
    assert look == pytest.approx(0.15)
    assert ask(placer, 0.1) == {}
    assert ask(placer, 0.1501) == {3: "a"}
    assert placer.next_look(0.1501) is None


def test_nothing_new_is_nothing_to_decide() -> None:
    placer = fleet(workers=1)
    ask(placer, 0.0, job(1, 5000))
    ask(placer, 0.0, job(2, 100), job(3, 3000), job(4, 3000))
    placer.report("a", Report(backlog=0.0, age=0.0), 0.01)
    assert ask(placer, 0.01) == {2: "a", 3: "a"}
    assert placer.decide(0.02) == []


def test_short_work_goes_first_but_waiting_counts() -> None:
    placer = fleet(workers=1, ageing=0.2)
    ask(placer, 0.0, job(0, 9000))
    ask(placer, 0.0, job(1, 3000, arrival=0.0), job(2, 1500, arrival=0.0))
    ask(placer, 0.9, job(3, 1400, arrival=0.9), job(4, 1390, arrival=0.0))
    placer.finished(0, 0.9)
    # Work less a fifth of the wait: 0.3 - 0.18, 0.15 - 0.18, 0.14, 0.139 - 0.18.
    placed = ask(placer, 0.9)
    assert list(placed) == [4, 2]
    assert list(ask(placer, 1.1)) == [1]


def test_a_share_of_the_work_goes_to_whoever_waits_longest() -> None:
    placer = fleet(workers=1, ageing=0.0, oldest_share=0.1)
    ask(placer, 0.0, job(0, 2000))
    ask(placer, 0.0, job(1, 3000))
    order = []
    for uid in range(2, 40):
        placer.arrived(job(uid, 1600), 0.0)
    for _ in range(39):
        (under_way,) = placer.workers["a"].sent
        placer.finished(under_way, 0.0)
        order += list(ask(placer, 0.0))
    # A tenth of the 0.16 s of each: after 19 of them it is owed its 0.3 s.
    assert order.index(1) == 19
    assert sorted(order) == list(range(1, 40))


def test_short_work_goes_where_it_interrupts_least() -> None:
    placer = Placer(PlacementConfig(policy="held"))
    for name in "ab":
        placer.worker_up(info(name, shortest_first=True, kv_tokens=100_000), 0.0)
    # Both are busy for a long time, and yet a short one goes at once.
    assert ask(placer, 0.0, job(1, 9000), job(2, 8000)) == {2: "a", 1: "b"}
    assert ask(placer, 0.0, job(3, 6000), job(4, 400)) == {4: "a", 3: "b"}
    # It would interrupt two at b, and a has one.
    assert ask(placer, 0.1, job(5, 500)) == {5: "a"}
    # Another long one waits for those before it.
    assert ask(placer, 0.1, job(6, 9500)) == {}


def test_a_long_queue_is_not_planned_without_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placer_, "_COMPARISONS", 2)
    placer = fleet(workers=2)
    placer.report("a", Report(backlog=0.0, running=1, kv_used=9900, kv_total=10_000, age=0.0), 0.0)
    placer.report("b", Report(backlog=9.0, age=0.0), 0.0)
    assert ask(placer, 0.0, *(job(uid, 1000, PREFIX) for uid in range(20))) == {}
    placer.report("a", Report(backlog=0.0, running=0, kv_used=0, kv_total=10_000, age=0.0), 0.0)
    rested = placer.next_look(0.0)
    assert rested is not None and 0 < rested < 1e-3
    assert placer.decide(rested / 2) == []
    assert list(ask(placer, rested)) == [0, 1]


def test_a_busy_worker_gets_what_it_has_cached() -> None:
    placer = fleet(workers=3)
    placer.stored("b", job(0, 500, PREFIX).chains["10"])
    # Its cache is worth more than the wait there; and that of a worker that takes nothing is worth nothing.
    ask(placer, 0.0, job(0, 1600, excluded=frozenset("ac")))
    assert ask(placer, 0.0, job(1, 510, PREFIX, excluded=frozenset("c"))) == {1: "a"}
    placer.finished(1, 0.0)
    ask(placer, 0.0, *(job(uid, 4000) for uid in (2, 3)))
    assert placer.workers["b"].requests == 1
    placer.allow("b", ready=False)
    assert ask(placer, 1.0, job(4, 510, PREFIX)) == {4: "a"}


def test_what_a_cache_spares_is_not_work() -> None:
    placer = fleet(workers=1)
    placer.stored("a", job(0, 500, PREFIX).chains["10"])
    ask(placer, 0.0, job(0, 5000))
    ask(placer, 0.0, job(1, 2100), job(2, 2500, PREFIX))
    placer.finished(0, 0.0)
    assert list(ask(placer, 0.0)) == [2]


def test_a_placement_fills_the_cache_before_any_event_says_so() -> None:
    placer = fleet("predicted-ttft")
    first = ask(placer, 0.0, job(1, 500, PREFIX))[1]
    placer.first_token(1, 0.1)
    again = placer.decide(0.1)
    assert again == []
    placer.arrived(job(2, 510, PREFIX), 0.1)
    (decision,) = placer.decide(0.1)
    assert isinstance(decision, Placed)
    assert (decision.worker, decision.hit) == (first, 500)
    # No event came: a second after the first token nothing is left of it.
    placer.finished(1, 0.2)
    placer.finished(2, 0.2)
    placer.arrived(job(3, 510, PREFIX), 1.5)
    (decision,) = placer.decide(1.5)
    assert isinstance(decision, Placed) and decision.hit == 0


def test_what_events_confirm_stays() -> None:
    placer = fleet("predicted-ttft", workers=1)
    ask(placer, 0.0, job(1, 500, PREFIX))
    placer.stored("a", job(0, 300, range(1, 31)).chains["10"])
    placer.finished(1, 0.2)
    placer.arrived(job(2, 510, PREFIX), 1.5)
    (decision,) = placer.decide(1.5)
    assert isinstance(decision, Placed) and decision.hit == 300
    placer.removed("a", job(0, 300, range(21, 31)).chains["10"])
    placer.finished(2, 1.5)
    placer.arrived(job(3, 510, PREFIX), 9.0)
    (decision,) = placer.decide(9.0)
    assert isinstance(decision, Placed) and decision.hit == 200


def test_a_worker_without_events_is_believed_to_keep_what_it_got() -> None:
    placer = fleet("predicted-ttft", workers=1, exact=False)
    ask(placer, 0.0, job(1, 500, PREFIX))
    placer.finished(1, 0.2)
    placer.arrived(job(2, 510, PREFIX), 60.0)
    (decision,) = placer.decide(60.0)
    assert isinstance(decision, Placed) and decision.hit == 500


def test_workers_of_different_hashes_are_asked_each_in_their_own() -> None:
    placer = Placer(PlacementConfig(policy="predicted-ttft"))
    placer.worker_up(info("a"), 0.0)
    placer.worker_up(info("b", chain="text", block_tokens=100, exact=False), 0.0)

    def both(uid: int) -> Job:
        return Job(uid=uid, prompt_tokens=550, chains={"10": chain(PREFIX), "text": chain(range(901, 906))})

    placer.allow("a", ready=False)
    assert ask(placer, 0.0, both(1)) == {1: "b"}
    placer.finished(1, 1.0)
    placer.allow("a", ready=True)
    assert ask(placer, 1.0, both(2)) == {2: "b"}
    placer.allow("b", ready=False)
    assert ask(placer, 1.0, both(3)) == {3: "a"}


def test_nothing_goes_where_it_does_not_fit() -> None:
    placer = fleet(workers=2)
    for name in "ab":
        placer.report(name, Report(backlog=0.0, running=1, kv_used=9000, kv_total=10_000, age=0.0), 0.0)
    assert ask(placer, 0.0, job(1, 600)) == {}
    assert ask(placer, 0.0, job(2, 400)) in ({2: "a"}, {2: "b"})
    # Whoever waits too long for room has the next that becomes free to itself.
    for name in "ab":
        placer.report(name, Report(backlog=0.0, running=1, kv_used=9000, kv_total=10_000, age=0.0), 3.0)
    assert ask(placer, 3.0, job(3, 700, arrival=3.0)) == {}
    placer.report("a", Report(backlog=0.0, running=1, kv_used=100, kv_total=10_000, age=0.0), 3.1)
    assert 1 in ask(placer, 3.1)


def test_a_waiting_giant_is_not_overtaken_for_ever() -> None:
    placer = fleet(workers=1)
    placer.report("a", Report(backlog=0.0, running=1, kv_used=9000, kv_total=10_000, age=0.0), 0.0)
    assert ask(placer, 0.0, job(1, 600)) == {}
    placer.report("a", Report(backlog=0.0, running=1, kv_used=9000, kv_total=10_000, age=0.0), 8.0)
    assert ask(placer, 8.0, job(2, 300, arrival=8.0)) == {}
    placer.report("a", Report(backlog=0.0, running=1, kv_used=5000, kv_total=10_000, age=0.0), 9.0)
    assert list(ask(placer, 9.0)) == [1, 2]


def test_priorities_come_first() -> None:
    placer = fleet(workers=1)
    ask(placer, 0.0, job(0, 5000))
    ask(placer, 0.0, job(1, 100), job(2, 2000, priority=1))
    placer.finished(0, 0.1)
    assert list(ask(placer, 0.1)) == [2]


def test_tenants_take_turns() -> None:
    placer = fleet(workers=1)
    # Two seconds of prefill each way are a turn.
    for number in range(200):
        placer.arrived(job(number, 1600, tenant="greedy"), 0.0)
    for number in range(200, 240):
        placer.arrived(job(number, 1700, tenant="modest"), 0.0)
    order = []
    now = 0.0
    for _ in range(80):
        for uid in where(placer.decide(now)):
            order.append("greedy" if int(uid) < 200 else "modest")
            now += 0.17
            placer.finished(uid, now)
    # they are never further apart than a turn, of 12 jobs, and a few more.
    counts = [order[:count].count("greedy") - order[:count].count("modest") for count in range(1, 70)]
    assert max(counts) <= 16 and min(counts) >= -16


def test_a_tenant_that_comes_back_is_owed_nothing_for_its_absence() -> None:
    placer = fleet(workers=1)
    now = 0.0
    for number in range(100):
        ask(placer, now, job(number, 1600, tenant="old"))
        now += 0.17
        placer.finished(number, now)
    ask(placer, now, job(1000, 9000, tenant="old"))
    for number in range(60):
        placer.arrived(job(2000 + number, 1600, tenant="new"), now)
        placer.arrived(job(3000 + number, 1600, tenant="old"), now)
    placer.finished(1000, now)
    order = []
    for _ in range(40):
        for uid in where(placer.decide(now)):
            order.append(int(uid) >= 3000)
            now += 0.17
            placer.finished(uid, now)
    assert 12 <= sum(order[:40]) <= 28


@pytest.mark.parametrize("policy", POLICIES)
def test_what_cannot_be_in_time_is_refused_early(policy: str) -> None:
    placer = fleet(policy, workers=1)
    placer.report("a", Report(backlog=3.0, age=0.0), 0.0)
    placer.arrived(job(1, 1000, deadline=2.0), 0.0)
    placer.arrived(job(2, 1000, deadline=5.0), 0.0)
    decisions = placer.decide(0.0)
    (refused,) = [one for one in decisions if isinstance(one, Refused)]
    assert refused.job.uid == 1 and refused.reason == "deadline"
    assert refused.retry_after == pytest.approx(1.1)
    assert placer.refused == 1
    assert 2 not in [one.job.uid for one in decisions if isinstance(one, Refused)]


def test_who_waits_until_it_is_too_late_is_refused_then() -> None:
    placer = fleet(workers=1)
    placer.report("a", Report(backlog=1.0, age=0.0), 0.0)
    assert ask(placer, 0.0, job(1, 1000, deadline=2.0)) == {}
    placer.report("a", Report(backlog=1.0, age=0.0), 1.5)
    (refused,) = placer.decide(1.5)
    assert isinstance(refused, Refused)
    assert placer.waiting == 0


def test_a_lost_worker_returns_its_jobs() -> None:
    placer = fleet(workers=2)
    placed = ask(placer, 0.0, job(1, 1000), job(2, 1000))
    lost = placer.worker_down("a", 0.1)
    assert [one.uid for one in lost] == [uid for uid, worker in placed.items() if worker == "a"]
    placer.first_token(lost[0].uid, 0.1)
    placer.finished(lost[0].uid, 0.1)
    assert ask(placer, 0.1, *lost) == {lost[0].uid: "b"}
    placer.worker_up(info("a"), 0.2)
    with pytest.raises(ValueError, match="already"):
        placer.worker_up(info("a"), 0.2)


def test_excluded_and_unready_workers_get_nothing() -> None:
    placer = fleet(workers=2)
    assert ask(placer, 0.0, job(1, 100, excluded=frozenset("a"))) == {1: "b"}
    placer.allow("b", ready=False)
    assert ask(placer, 0.0, job(2, 100, excluded=frozenset("a"))) == {}
    assert ask(placer, 0.0, job(3, 100)) == {3: "a"}
    placer.allow("b", ready=True)
    assert ask(placer, 0.1) == {2: "b"}


def test_a_slow_start_gets_less() -> None:
    placer = fleet("predicted-ttft", workers=2)
    placer.allow("a", ready=True, weight=0.1)
    placed = ask(placer, 0.0, *(job(number, 100) for number in range(22)))
    assert list(placed.values()).count("a") <= 3


def test_a_newcomer_is_taken_to_be_like_the_others() -> None:
    placer = fleet("predicted-ttft", workers=1)
    placer.worker_up(info("b", speed=None), 0.0)
    placed = ask(placer, 0.0, *(job(number, 100) for number in range(10)))
    assert list(placed.values()).count("b") == 5


def test_a_job_arrives_once() -> None:
    placer = fleet(workers=1)
    placer.arrived(job(1, 100), 0.0)
    with pytest.raises(ValueError, match="already"):
        placer.arrived(job(1, 100), 0.0)
    placer.decide(0.0)
    with pytest.raises(ValueError, match="already"):
        placer.arrived(job(1, 100), 0.0)
    placer.finished("unknown", 0.0)
    placer.progressed("unknown", 5, 0.0)
    placer.first_token("unknown", 0.0)


def test_a_job_without_workers_waits() -> None:
    placer = Placer()
    assert ask(placer, 0.0, job(1, 100)) == {}
    assert placer.next_look(0.0) is None
    placer.worker_up(info("a"), 1.0)
    assert ask(placer, 1.0) == {1: "a"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "best"},
        {"horizon": 0.0},
        {"work_left": 0.0},
        {"ageing": -1.0},
        {"dearest": 0.5},
        {"kv_share": 1.5},
        {"window": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PlacementConfig(**wrong)


KINDS = ["arrive", "arrive", "arrive", "first", "progress", "finish", "report", "down", "up", "wait", "store"]
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 4000)), max_size=60)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(POLICIES), st.booleans(), ACTIONS)
def test_every_job_is_decided_once_and_nothing_of_it_is_left(
    policy: str, exact: bool, actions: list[tuple[str, int, int]]
) -> None:
    placer = fleet(policy, workers=3, exact=exact)
    now, arrived = 0.0, 0
    live: dict[int | str, str] = {}
    waiting: set[int | str] = set()
    for what, which, tokens in actions:
        names = list(placer.workers)
        uids = sorted(live)
        uid = uids[which % len(uids)] if uids else None
        if what == "arrive":
            arrived += 1
            late = now + 0.3 if which == 0 else None
            placer.arrived(job(arrived, tokens, range(1, tokens // 10), tenant=str(which % 2), deadline=late), now)
            waiting.add(arrived)
        elif what == "first" and uid is not None:
            placer.first_token(uid, now)
        elif what == "progress" and uid is not None:
            placer.progressed(uid, which, now)
        elif what == "finish" and uid is not None:
            placer.finished(uid, now)
            del live[uid]
        elif what == "report" and names:
            placer.report(names[which % len(names)], Report(backlog=tokens / 1e4, kv_used=tokens, kv_total=10_000), now)
        elif what == "down" and names:
            gone = names[which % len(names)]
            assert sorted(one.uid for one in placer.worker_down(gone, now)) == [
                uid for uid in uids if live[uid] == gone
            ]
            live = {uid: worker for uid, worker in live.items() if worker != gone}
        elif what == "up" and len(names) < 3:
            placer.worker_up(info(next(name for name in "abc" if name not in names), exact=exact), now)
        elif what == "store" and exact and names:
            placer.stored(names[which % len(names)], job(0, 0, range(1, 1 + tokens // 10)).chains["10"])
        else:
            now += tokens / 1e4
        for decision in placer.decide(now):
            assert decision.job.uid in waiting
            waiting.discard(decision.job.uid)
            if isinstance(decision, Placed):
                assert placer.workers[decision.worker].ready and 0 <= decision.hit <= decision.job.prompt_tokens
                live[decision.job.uid] = decision.worker
        assert placer.waiting == len(waiting)
        for name, worker in placer.workers.items():
            assert {uid for uid, where_ in live.items() if where_ == name} == set(worker.sent)
            assert worker.tokens == sum(
                one.job.prompt_tokens - one.hit for one in worker.sent.values() if not one.begun
            )
            assert worker.need == sum(one.need for one in worker.sent.values())
    for uid in [*live, *waiting]:
        placer.finished(uid, now)
    placer.decide(now + 2)
    assert placer.waiting == 0
    for worker in placer.workers.values():
        assert not worker.sent and worker.tokens == worker.need == worker.unread == 0
