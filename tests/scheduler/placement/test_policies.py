"""`scheduler.placement.policies`: each policy looks at what it says."""

from collections import Counter

import pytest

from scheduler.placement import POLICIES, Report
from scheduler.placement.policies import BY_NAME, mixed
from tests.scheduler.placement.fleets import ask, fleet, job

PREFIX = range(1, 51)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_places_every_job(policy: str) -> None:
    placer = fleet(policy, workers=3)
    placed = [ask(placer, float(number), job(number, 200, session=str(number))) for number in range(12)]
    assert [list(one) for one in placed] == [[number] for number in range(12)]
    assert set(BY_NAME) == set(POLICIES)


def test_round_robin_goes_around() -> None:
    placer = fleet("round-robin", workers=3)
    assert list(ask(placer, 0.0, *(job(number, 200) for number in range(5))).values()) == ["a", "b", "c", "a", "b"]


def test_two_choices_take_the_less_busy_of_two() -> None:
    placer = fleet("two-choices", workers=8)
    counts = Counter(ask(placer, 0.0, *(job(number, 200) for number in range(400))).values())
    assert max(counts.values()) - min(counts.values()) <= 5
    alone = fleet("two-choices", workers=1)
    assert ask(alone, 0.0, job(1, 10)) == {1: "a"}


def test_a_session_stays_where_it_is_when_others_come_and_go() -> None:
    placer = fleet("session", workers=6)
    before = ask(placer, 0.0, *(job(number, 20, session=f"s{number}") for number in range(200)))
    assert len(set(before.values())) == 6
    placer.worker_down("c", 1.0)
    after = ask(placer, 1.0, *(job(1000 + number, 20, session=f"s{number}") for number in range(200)))
    moved = [number for number in range(200) if before[number] != after[1000 + number]]
    assert moved == [number for number in range(200) if before[number] == "c"]


def test_without_a_session_the_least_busy_one_is_taken() -> None:
    placer = fleet("session", workers=3)
    assert sorted(ask(placer, 0.0, *(job(number, 20) for number in range(3))).values()) == ["a", "b", "c"]


def test_least_load_looks_at_tokens_and_at_the_cache() -> None:
    placer = fleet("least-load")
    assert ask(placer, 0.0, job(1, 3000), job(2, 100), job(3, 100)) == {1: "a", 2: "b", 3: "b"}
    placer.report("a", Report(waiting_tokens=0, kv_used=0, kv_total=10_000, age=0.0), 1.0)
    placer.report("b", Report(waiting_tokens=0, kv_used=9_800, kv_total=10_000, age=0.0), 1.0)
    for uid in (1, 2, 3):
        placer.finished(uid, 1.0)
    assert ask(placer, 1.0, job(4, 100)) == {4: "a"}


def test_prefix_load_weighs_the_cache_against_the_queue() -> None:
    placer = fleet("prefix-load")
    placer.stored("a", job(0, 500, PREFIX).chains["10"])
    assert ask(placer, 0.0, job(1, 500, PREFIX)) == {1: "a"}
    placer.report("a", Report(waiting_tokens=400, age=0.0), 0.5)
    assert ask(placer, 0.5, job(2, 600, PREFIX)) == {2: "a"}
    placer.report("a", Report(waiting_tokens=900, age=0.0), 1.0)
    assert ask(placer, 1.0, job(3, 500, [*PREFIX])) == {3: "b"}


def test_lmetric_is_a_product() -> None:
    placer = fleet("lmetric")
    placer.report("a", Report(waiting_tokens=0, running=9, waiting=0, age=0.0), 0.0)
    placer.report("b", Report(waiting_tokens=300, running=1, waiting=0, age=0.0), 0.0)
    # 10 x 100 tokens, or 2 x 400.
    assert ask(placer, 0.0, job(1, 100)) == {1: "b"}


def test_predicted_ttft_waits_for_a_cache_only_as_long_as_that_pays() -> None:
    placer = fleet("predicted-ttft")
    placer.stored("a", job(0, 500, PREFIX).chains["10"])
    placer.report("a", Report(backlog=0.04, age=0.0), 0.0)
    assert ask(placer, 0.0, job(1, 500, PREFIX)) == {1: "a"}
    placer.finished(1, 0.0)
    placer.report("a", Report(backlog=0.06, age=0.0), 0.0)
    assert ask(placer, 0.0, job(2, 500, PREFIX)) == {2: "b"}


def test_capacity_is_dear_to_a_busy_fleet() -> None:
    def choice(busy: bool) -> str:
        placer = fleet("immediate")
        if busy:
            for number in range(100, 160):
                ask(placer, 0.0, job(number, 7000))
                placer.finished(number, 0.0)
        placer.cleared("a")
        placer.cleared("b")
        placer.stored("a", job(0, 500, PREFIX).chains["10"])
        placer.report("a", Report(backlog=0.1, age=0.0), 0.0)
        placer.report("b", Report(backlog=0.0, age=0.0), 0.0)
        assert placer.price == pytest.approx(12.0 if busy else 1.0)
        return ask(placer, 0.0, job(1, 500, PREFIX))[1]

    assert choice(busy=False) == "b"
    assert choice(busy=True) == "a"


def test_mixed_numbers_are_spread() -> None:
    assert len({mixed(number) % 64 for number in range(1000)}) == 64
