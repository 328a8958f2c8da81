"""`bench.simulate.others`: each does what its original is said to do."""

from collections import Counter

import pytest

from bench.load.records import Record
from bench.simulate.fleet import Fleet
from bench.simulate.gateway import CHAIN, placing
from bench.simulate.others import OTHERS, CacheAware, Scorers, by_bounded_prefix, by_prefix, dynamo
from bench.simulate.worker import Setting
from scheduler.placement import Job, Placer, Report, Worker, WorkerInfo
from scheduler.placement.worker import Sent
from scheduler.prefix_index import chain
from tests.bench.simulate.loads import MACHINE, chats


def workers(count: int = 3) -> list[Worker]:
    return [Worker(WorkerInfo(name=str(number), chain=CHAIN, block_tokens=16), 0.0) for number in range(count)]


def job(uid: int, tokens: int = 1600, first: int = 1) -> Job:
    return Job(uid=uid, prompt_tokens=tokens, chains={CHAIN: chain(range(first, first + tokens // 16))})


def busy(worker: Worker, requests: int, tokens: int = 160) -> None:
    for number in range(requests):
        worker.take(Sent(job(1000 + number, tokens), 0, 0.1, 0.0))


@pytest.mark.parametrize("name", OTHERS)
def test_each_serves_everybody(name: str) -> None:
    answered: list[Record] = []
    other = OTHERS[name]
    fleet = Fleet(Setting(machine=MACHINE), 3, placing(lambda: Placer(policy=other.policy), other.news))
    fleet.run(chats(requests=40, shared=160), answered.append)
    assert len(answered) == 40 and all(record.outcome == "ok" for record in answered)


def test_cache_aware_follows_the_cache_until_queues_differ_too_much() -> None:
    fleet, policy = workers(), CacheAware()
    busy(fleet[0], 64)
    assert policy(job(1), fleet, {"0": 800}, 0) == (fleet[0],)
    busy(fleet[0], 0)
    fleet[0].take(Sent(job(2000), 0, 0.1, 0.0))
    assert policy(job(1), fleet, {"0": 800}, 0) == (fleet[1],)


def test_cache_aware_sends_what_nobody_knows_to_the_smallest_tree() -> None:
    fleet, policy = workers(), CacheAware()
    busy(fleet[0], 3)
    busy(fleet[1], 1)
    busy(fleet[2], 2)
    assert policy(job(1), fleet, {"0": 480}, 0) == (fleet[1],)
    assert policy(job(1), fleet, {"0": 496}, 0) == (fleet[0],)


def test_scorers_weigh_queue_use_and_prefix() -> None:
    fleet = workers()
    for worker, (waiting, used) in zip(fleet, ((4, 0), (0, 500), (0, 0)), strict=True):
        worker.report(Report(waiting=waiting, kv_used=used, kv_total=1000), 0.0)
    assert Scorers()(job(1), fleet, {}, 0) == (fleet[2],)
    # 2 + 3 against 4: the prefix is worth the queue; half of it is not.
    assert Scorers()(job(1), fleet, {"0": 1600}, 0) == (fleet[0],)
    assert Scorers()(job(1), fleet, {"0": 800}, 0) == (fleet[2],)
    # Of a long prompt only so much is looked at.
    assert Scorers(matched=800)(job(1), fleet, {"0": 800}, 0) == (fleet[0],)
    assert len({Scorers()(job(1), workers(), {}, turn)[0].name for turn in range(9)}) == 3


def test_a_hash_of_the_beginning_keeps_prompts_together() -> None:
    fleet = workers(8)
    same = {by_prefix(job(uid, first=1), fleet, {}, 0)[0].name for uid in range(9)}
    assert len(same) == 1
    spread = Counter(by_prefix(job(uid, first=1000 * uid + 1), fleet, {}, 0)[0].name for uid in range(400))
    assert len(spread) == 8


def test_a_bound_on_loads_holds() -> None:
    fleet = workers(4)
    for uid in range(200):
        (chosen,) = by_bounded_prefix(job(uid), fleet, {}, 0)
        chosen.take(Sent(job(uid), 0, 0.1, 0.0))
        counts = [len(worker.sent) for worker in fleet]
        assert max(counts) <= 1.25 * sum(counts) / 4 + 1


def test_dynamo_counts_blocks_to_compute_and_blocks_in_use() -> None:
    (worker,) = workers(1)
    assert dynamo(job(1), worker, 0, 0.0, 0.0, 1.0) == 200
    assert dynamo(job(1), worker, 800, 0.0, 0.0, 1.0) == 150
    busy(worker, 2)
    assert dynamo(job(1), worker, 0, 0.0, 0.0, 1.0) == 240
