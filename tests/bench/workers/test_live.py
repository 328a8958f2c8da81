"""`bench.workers.live`, on an event loop whose time is made up."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import msgspec
import pytest

from bench.load.workload import Outline
from bench.simulate.worker import Setting as Simulated
from bench.workers.live import LiveRequest, LiveWorker, Setting
from bench.workers.tokens import Word
from scheduler.config import SchedulerConfig
from tests.bench.simulate.loads import MACHINE, chats, simulate


@dataclass
class FakeTimer:
    callback: Callable[[], Any]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """Runs callbacks in the order of their times, each ``lateness`` too late (it is asked once a callback)."""

    def __init__(self, lateness: Callable[[], float] = lambda: 0.0) -> None:
        self._now = 0.0
        self._lateness = lateness
        self._queue: list[tuple[float, int, FakeTimer]] = []
        self._numbers = count()

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[[], Any]) -> FakeTimer:
        return self.call_at(self._now, callback)

    def call_at(self, when: float, callback: Callable[[], Any]) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._queue, (when, next(self._numbers), timer))
        return timer

    def run(self) -> None:
        while self._queue:
            when, _, timer = heapq.heappop(self._queue)
            if not timer.cancelled:
                self._now = max(self._now, when + self._lateness())
                timer.callback()


def serve(outlines: list[Outline], setting: Setting, loop: FakeLoop | None = None) -> tuple[list[list[float]], Any]:
    """When each request's tokens came, and the worker."""
    loop = loop or FakeLoop()
    worker = LiveWorker(setting, loop)
    times: list[list[float]] = [[] for _ in outlines]

    def submit(outline: Outline) -> None:
        # Texts of their own: nothing is found in the cache.
        tokens = [1000 + outline.index] * outline.input_tokens
        mine = times[outline.index]

        def take(word: Word, finish: str | None) -> None:
            mine.append(loop.time())
            assert (finish is not None) == (len(mine) == outline.output_tokens)

        worker.submit(tokens, outline.output_tokens, take)

    for outline in outlines:
        assert outline.at is not None
        loop.call_at(outline.at, lambda outline=outline: submit(outline))  # type: ignore[misc]
    loop.run()
    worker.scheduler.check_integrity()
    return times, worker


@pytest.mark.parametrize("ahead", [False, True])
def test_it_does_what_the_simulator_says(ahead: bool) -> None:
    """Every token of 60 chats, on a cache too small for all of them, at the simulator's time."""
    machine = msgspec.structs.replace(MACHINE, ahead=ahead, kv_tokens=3000)
    config = SchedulerConfig(lookahead=False)
    load = chats(requests=60, rate="poisson:30", output=40)
    records, extras, _ = simulate(load, Simulated(machine=machine, config=config))
    times, worker = serve(list(load.outlines()), Setting(machine=machine, config=config))
    assert extras.preemptions > 0
    assert worker.load.preemptions_total == extras.preemptions
    assert [mine[0] for mine in times] == pytest.approx([record.first for record in records], abs=1e-5)
    assert [mine[-1] for mine in times] == pytest.approx([record.end for record in records], abs=1e-5)


def test_speed_divides_all_times() -> None:
    load = list(chats(requests=40, rate="poisson:20").outlines())
    hurried = [msgspec.structs.replace(one, at=(one.at or 0.0) / 8) for one in load]
    slow, _ = serve(load, Setting(machine=MACHINE))
    fast, _ = serve(hurried, Setting(machine=MACHINE, speed=8))
    firsts, lasts = ([mine[place] for mine in slow] for place in (0, -1))
    # Not to the last bit: what the scheduler believes before it has measured anything isn't divided.
    assert [mine[0] * 8 for mine in fast] == pytest.approx(firsts, abs=0.15)
    assert [mine[-1] * 8 for mine in fast] == pytest.approx(lasts, abs=0.15)


def test_a_late_timer_delays_no_step_but_its_own() -> None:
    late = [0.004]
    times, worker = serve([Outline(0, 0.0, 100, 200)], Setting(machine=MACHINE), FakeLoop(lambda: late[0]))
    assert times[0][-1] == pytest.approx(0.01 + 100e-4 + 199 * 0.0101 + 2 * 0.004, abs=0.005)
    assert worker.lost == 0


def test_a_process_that_cannot_keep_up_says_so() -> None:
    _, worker = serve([Outline(0, 0.0, 100, 20)], Setting(machine=MACHINE), FakeLoop(lambda: 0.06))
    assert worker.lost == pytest.approx(20 * 0.06, rel=0.1)


@pytest.mark.parametrize("ahead", [False, True])
def test_an_aborted_request_gets_nothing_more_and_frees_its_blocks(ahead: bool) -> None:
    loop = FakeLoop()
    worker = LiveWorker(Setting(machine=msgspec.structs.replace(MACHINE, ahead=ahead)), loop)
    words: dict[int, int] = {0: 0, 1: 0, 2: 0}
    requests: list[LiveRequest] = []

    def take(number: int) -> Callable[[Word, str | None], None]:
        def taken(word: Word, finish: str | None) -> None:
            words[number] += 1
            if number == 0 and words[0] == 5:
                worker.abort(requests[1])

        return taken

    requests += [worker.submit([number] * 50, 30, take(number)) for number in range(3)]
    worker.abort(requests[2])  # still in the inbox
    loop.run()
    assert words == {0: 30, 1: pytest.approx(5, abs=1), 2: 0}
    assert worker.load.kv_used == 0
    assert not worker.scheduler.busy
    worker.scheduler.check_integrity()


def test_what_can_never_fit_is_refused() -> None:
    worker = LiveWorker(Setting(machine=MACHINE), FakeLoop())
    with pytest.raises(ValueError, match="needs KV for 16099 tokens, the worker holds 16000"):
        worker.submit([1] * 16_000, 100, lambda word, finish: None)
    with pytest.raises(ValueError, match="has no tokens"):
        worker.submit([], 100, lambda word, finish: None)
    assert worker.load.waiting == 0


def test_those_that_have_just_come_count_as_waiting() -> None:
    worker = LiveWorker(Setting(machine=MACHINE), FakeLoop())
    worker.submit([1] * 70, 100, lambda word, finish: None)
    assert (worker.load.waiting, worker.load.waiting_tokens) == (1, 70)


def test_a_speed_is_above_zero() -> None:
    with pytest.raises(ValueError, match="speed 0"):
        replace(Setting(machine=MACHINE), speed=0)


def test_a_prompt_asked_again_is_found() -> None:
    cached = []
    loop = FakeLoop()
    worker = LiveWorker(Setting(machine=MACHINE), loop)

    def again() -> None:
        second = worker.submit([7] * 100, 3, lambda word, finish: cached.append(second.cached))

    loop.call_at(0.0, lambda: worker.submit([7] * 100, 3, lambda word, finish: None))
    loop.call_at(1.0, again)
    loop.run()
    assert cached == [96] * 3
    assert worker.load.cached_tokens_total == 96
