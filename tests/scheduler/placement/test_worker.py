"""`scheduler.placement.worker`: how busy a worker is, by its own word or by what was sent there."""

import pytest

from scheduler.placement import Report, Worker
from scheduler.placement.worker import GUESS, Sent, pool
from scheduler.steptime import Coefficients
from tests.scheduler.placement.fleets import SPEED, info, job


def sent(uid: int, tokens: int, at: float, hit: int = 0) -> Sent:
    return Sent(job(uid, tokens), hit, SPEED.token * (tokens - hit), at)


def test_what_was_sent_is_work_until_its_first_token() -> None:
    worker = Worker(info("a"), 0.0)
    worker.take(sent(1, 1000, 5.0))
    worker.take(sent(2, 2000, 5.0))
    assert worker.work_left(5.0) == pytest.approx(0.3)
    assert worker.work_left(5.05) == pytest.approx(0.25)
    worker.begun(1, 5.1)
    assert worker.work_left(5.1) == pytest.approx(0.2)
    assert (worker.requests, worker.unread, worker.decoding, worker.context) == (2, 2000, 1, 1000)
    worker.produced(1, 7)
    assert worker.context == 1007
    worker.ended(1, 5.2)
    worker.ended(2, 5.2)
    assert (worker.requests, worker.unread, worker.decoding, worker.context, worker.need) == (0, 0, 0, 0, 0)
    assert worker.work_left(5.2) == 0.0


def test_an_idle_worker_begins_when_it_gets_something() -> None:
    worker = Worker(info("a"), 0.0)
    worker.take(sent(1, 1000, 100.0))
    assert worker.work_left(100.0) == pytest.approx(0.1)


def test_a_report_is_believed_and_what_it_cannot_know_is_added() -> None:
    worker = Worker(info("a"), 0.0)
    worker.take(sent(1, 1000, 1.00))
    worker.take(sent(2, 2000, 1.09))
    worker.report(
        Report(backlog=0.5, waiting_tokens=4000, waiting=3, running=4, kv_used=900, kv_total=5000, age=0.05), 1.1
    )
    # Tokens are what workers can be compared by; and of what it says nothing is guessed of the time since.
    assert worker.work_left(1.1) == worker.work_left(1.3) == pytest.approx(0.6)
    assert (worker.requests, worker.unread) == (8, 6000)
    assert worker.kv_total == 5000
    # Our own need is more than it holds by now.
    assert worker.kv_used == 1010 + 2010
    worker.begun(2, 1.2)
    assert (worker.requests, worker.unread) == (7, 4000)
    worker.report(Report(backlog=0.0, running=2, decoding=2, context=300, kv_used=4000, kv_total=5000), 2.0)
    assert (worker.requests, worker.decoding, worker.context, worker.kv_used) == (2, 2, 300, 4000)


def test_a_first_token_counts_once() -> None:
    worker = Worker(info("a"), 0.0)
    worker.take(sent(1, 100, 0.0))
    worker.begun(1, 0.1)
    worker.begun(1, 0.2)
    assert worker.decoding == 1


def test_prefill_is_slower_beside_decodes() -> None:
    worker = Worker(info("a", speed=Coefficients(0.01, 1e-4, 1e-5, 0.0, 1e-3)), 0.0)
    worker.reckon(0.05, 0.5, 0.0)
    assert worker.seconds(1000, 0) == pytest.approx(0.1)
    worker.report(Report(decoding=5, context=1000), 0.0)
    worker.reckon(0.05, 0.5, 0.0)
    # A step of decodes takes 0.025 s; as much is left for prefill.
    assert worker.seconds(1000, 0) == pytest.approx(0.2)
    assert worker.reading(200) == pytest.approx(0.5 * 1e-5 * (1000 + 5 * 200))
    worker.weight = 0.5
    worker.changed()
    worker.reckon(0.05, 0.5, 0.0)
    assert worker.seconds(1000, 0) == pytest.approx(0.4)
    worker.report(Report(decoding=5, context=100_000), 0.0)
    worker.reckon(0.05, 0.5, 0.0)
    assert worker.seconds(1000, 0) == pytest.approx(0.1 * 5 / 0.5)


def test_the_last_token_is_never_cached() -> None:
    worker = Worker(info("a", speed=Coefficients(0.01, 1e-4, 0.0, 2e-6, 0.0)), 0.0)
    assert worker.work(100, 100) == pytest.approx(1e-4 + 1e-6 * (100**2 - 99**2))
    assert worker.work(100, 60) == pytest.approx(40e-4 + 1e-6 * (100**2 - 60**2))


def test_room_is_what_jobs_will_need() -> None:
    worker = Worker(info("a", kv_tokens=1000), 0.0)
    assert worker.fits(5000, 0.95)
    worker.take(sent(1, 500, 0.0, hit=100))
    assert worker.kv_used == 410
    assert worker.fits(540, 0.95) and not worker.fits(541, 0.95)
    worker.produced(1, 30)
    assert worker.kv_used == 430
    assert Worker(info("b", kv_tokens=0), 0.0).fits(10**9, 0.95)


def read(worker: Worker, token: float, rounds: int = 50) -> None:
    """Two prompts at a time are read at so many seconds a token, with pauses that count for nothing."""
    now = 0.0
    for uid in range(0, 2 * rounds, 2):
        for one in (uid, uid + 1):
            worker.take(sent(one, 1000, now))
        now += 2000 * token
        for one in (uid, uid + 1):
            worker.begun(one, now)
            worker.ended(one, now)
        now += 7.0


def test_how_fast_a_silent_worker_is_shows_in_its_first_tokens() -> None:
    worker = Worker(info("a", speed=None), 0.0)
    assert worker.measured() == 0.0
    pool([worker])
    assert worker.speed == GUESS
    read(worker, 2.5e-4)
    pool([worker])
    assert worker.speed.token == pytest.approx(2.5e-4, rel=0.05)


def test_equal_machines_are_compared_by_equal_figures() -> None:
    workers = [Worker(info(name), 0.0) for name in "abc"]
    for worker, token in zip(workers, (0.0, 3e-5, 5e-5), strict=True):
        worker.report(Report(speed=SPEED._replace(token=token)), 0.0)
    pool(workers)
    assert {worker.speed.token for worker in workers} == {3e-5}


def test_a_machine_that_is_another_is_told_from_noise() -> None:
    workers = [Worker(info(name), 0.0) for name in "abcd"]
    for worker, token in zip(workers, (1e-4, 1.1e-4, 2e-4, 1e-3), strict=True):
        read(worker, token)
    pool(workers)
    assert [worker.speed.token for worker in workers[:3]] == [1e-4] * 3
    assert workers[3].speed.token == pytest.approx(1e-4 * 1e-3 / 1.55e-4, rel=0.1)


def test_workers_that_boast_are_not_believed() -> None:
    worker = Worker(info("a"), 0.0)
    worker.report(Report(speed=SPEED._replace(token=0.0)), 0.0)
    pool([worker])
    assert worker.work(1000, 0) == 0.0
    read(worker, 4e-4)
    pool([worker])
    assert worker.work(1000, 0) == pytest.approx(0.1, rel=0.05)


def test_in_a_slow_start_there_is_more_left() -> None:
    worker = Worker(info("a"), 0.0)
    worker.take(sent(1, 1000, 0.0))
    worker.weight = 0.25
    assert worker.work_left(0.0) == pytest.approx(0.4)
