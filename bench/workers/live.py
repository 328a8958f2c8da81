"""How does a simulated worker run in real time? Production's scheduler, in the order of production's pipeline.

It is what `bench.simulate.worker` does in simulated time, with an event loop's timer in place of the simulation's
agenda. A step takes as long as the machine's formula says, divided by ``speed``; so do all of the scheduler's own
times, for to a machine that is twice as fast half a second is what a second was.

Each step begins when the one before *should* have ended: what the timer is late by, a millisecond or so, doesn't add
up. A process that comes too late by more than `PATIENCE` gives that time up, and counts it as ``lost``: figures of a
run in which it isn't next to nothing are those of this machine, not of the simulated one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import exp
from random import Random
from typing import Any, Final, Literal, Protocol

import msgspec

from bench.simulate.machines import Machine
from bench.workers.tokens import Codec, Voice, Word
from engine.events import KvEventPublisher
from scheduler.batch import Plan, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.load import LoadReport
from scheduler.request import ENDED, WAITING, Request
from scheduler.steptime import StepTime

PATIENCE: Final = 0.05
"""Seconds by which a step may be late before the delay is passed on to those after it."""

Deliver = Callable[[Word, Literal["stop", "length"] | None], None]
"""Takes a word of an answer as it is drawn; with the last one, why it is the last."""


class Timer(Protocol):
    """Something that will be called."""

    def cancel(self) -> None:
        """Don't call it."""


class Loop(Protocol):
    """What is wanted of an event loop; `asyncio.AbstractEventLoop` has it."""

    def time(self) -> float:
        """Seconds, from any beginning."""

    def call_soon(self, callback: Callable[[], Any]) -> Timer:
        """Call as soon as what is under way is over."""

    def call_at(self, when: float, callback: Callable[[], Any]) -> Timer:
        """Call at that time, or a little later."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A worker's machine and settings, in the machine's own time: ``speed`` is how much faster than that it runs."""

    machine: Machine
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    speed: float = 1.0
    block_size: int = 16
    max_len: int = 131_072
    token_bytes: int = 4

    def __post_init__(self) -> None:
        """Refuse what can't work.

        Raises:
            ValueError: ``speed`` isn't above 0.
        """
        if not 0 < self.speed < float("inf"):
            raise ValueError(f"speed {self.speed:g}: it must be above 0")

    @property
    def hurried(self) -> SchedulerConfig:
        """The scheduler's settings with ``speed`` applied to its times."""
        config = self.config
        names = ("ttft", "tpot", "max_step", "background_step")
        return replace(config, **{name: getattr(config, name) / self.speed for name in names})


class LiveRequest(Request):
    """A request whose words go to ``deliver``."""

    __slots__ = ("deliver", "voice")

    def __init__(
        self, uid: int, tokens: list[int], max_tokens: int, worker: "LiveWorker", deliver: Deliver, priority: int
    ) -> None:
        config = worker.config
        super().__init__(
            uid=uid,
            tokens=tokens,
            max_tokens=max_tokens,
            max_len=worker.max_len,
            ttft=config.ttft,
            tpot=config.tpot,
            arrival=worker.now,
            priority=priority,
        )
        self.voice = Voice(worker.codec, tokens)
        self.deliver = deliver


class LiveWorker:
    """One worker, in an event loop. ``publisher`` gets its cache's events.

    ``lost`` counts the seconds by which this process was too late to simulate what it should.
    """

    def __init__(self, setting: Setting, loop: Loop, publisher: KvEventPublisher | None = None) -> None:
        """An idle worker with an empty cache, that has measured no step yet."""
        machine = setting.machine
        pool = BlockPool(machine.kv_tokens // setting.block_size, setting.block_size)
        if publisher is not None:
            pool.record_events()
        self.config = setting.hurried
        self.max_len = setting.max_len
        self.codec = Codec(setting.token_bytes)
        self.lost = 0.0
        self.scheduler: Scheduler[LiveRequest] = Scheduler(self.config, pool, StepTime())
        self._machine = machine
        self._speed = setting.speed
        self._gauss = Random(0).gauss
        self._loop = loop
        self._publisher = publisher
        self._inbox: list[LiveRequest] = []
        self._running: Plan[LiveRequest] | None = None
        self._following: Plan[LiveRequest] | None = None
        self._ends = self._seconds = 0.0
        self._timer: Timer | None = None
        self._uid = 0

    @property
    def now(self) -> float:
        """The event loop's time, in seconds."""
        return self._loop.time()

    @property
    def load(self) -> LoadReport:
        """How busy it is; those that came since the last step are waiting, too."""
        report = self.scheduler.load(self.now)
        new = self._inbox
        tokens = report.waiting_tokens + sum(request.prompt_len for request in new)
        return report._replace(waiting=report.waiting + len(new), waiting_tokens=tokens)

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""
        return self.scheduler.pool.block_size

    def submit(self, tokens: list[int], max_tokens: int, deliver: Deliver, priority: int = 0) -> LiveRequest:
        """Take a request in. It is looked at between two steps.

        Raises:
            ValueError: it has no tokens, or can never fit.
        """
        self._uid += 1
        request = LiveRequest(self._uid, tokens, max_tokens, self, deliver, priority)
        pool = self.scheduler.pool
        room = pool.num_blocks * pool.block_size
        if request.limit - 1 > room:
            raise ValueError(f"the request needs KV for {request.limit - 1} tokens, the worker holds {room}")
        self._inbox.append(request)
        if self._running is None and self._timer is None:
            self._timer = self._loop.call_soon(self._wake)
        return request

    def abort(self, request: LiveRequest) -> None:
        """Forget a request, wherever it is; one that has ended stays as it was."""
        if request in self._inbox:
            self._inbox.remove(request)
        else:
            self.scheduler.abort(request.uid)

    def close(self) -> None:
        """Stop; nothing more is delivered."""
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self, now: float | None = None) -> None:
        """Begin a step, if there is something to do."""
        now = self.now if now is None else now
        self._timer = None
        self._read(now)
        plan = self.scheduler.schedule(now)
        if not plan.slices:
            return
        self._begin(plan, now)
        if self._machine.ahead:
            self.scheduler.advance(plan)
            self._look_ahead(now)

    def _begin(self, plan: Plan[LiveRequest], now: float) -> None:
        seconds = self._machine.seconds(plan.work) / self._speed
        jitter = self._machine.jitter
        if jitter:
            seconds *= exp(self._gauss(-0.5 * jitter**2, jitter))
        self._running, self._seconds, self._ends = plan, seconds, now + seconds
        self._timer = self._loop.call_at(self._ends, self._step_ended)

    def _look_ahead(self, now: float) -> None:
        """Plan the step after the one that begins now: it should begin when that one should end."""
        assert self._running is not None
        following = self.scheduler.schedule(now + self._running.predicted)
        self._following = following if following.slices else None

    def _step_ended(self) -> None:
        plan, self._running, self._timer = self._running, None, None
        assert plan is not None
        now, late = self._ends, self.now - self._ends
        if late > PATIENCE:
            self.lost += late
            now += late
        drawn = self._commit(plan, now)
        self._go_on(now)
        for request, word in drawn:
            request.deliver(word, request.finish)
        if self._publisher is not None:
            self._publisher.publish(self.scheduler.pool.take_events())

    def _go_on(self, now: float) -> None:
        """Begin what follows the step that has ended."""
        following, self._following = self._following, None
        if following is None:
            self._wake(now)
            return
        self.scheduler.advance(following)
        self._begin(following, now)
        self._read(now)
        self._look_ahead(now)

    def _read(self, now: float) -> None:
        for request in self._inbox:
            self.scheduler.add(request, now)
        self._inbox.clear()

    def _commit(self, plan: Plan[LiveRequest], now: float) -> list[tuple[LiveRequest, Word]]:
        """Draw what the step draws. Who gets which word."""
        sampled: list[int] = []
        drawn: list[tuple[LiveRequest, Word]] = []
        for request, _, _, samples in plan.slices:
            if not samples:
                continue
            if request.state in (WAITING, ENDED):
                sampled.append(0)
                continue
            word = request.voice.next()
            sampled.append(word.id)
            drawn.append((request, word))
        self.scheduler.commit(plan, sampled, now, self._seconds)
        return drawn


def with_kv(machine: Machine, tokens: int | None) -> Machine:
    """The machine with a KV cache of so many tokens; None: its own."""
    return machine if tokens is None else msgspec.structs.replace(machine, kv_tokens=tokens)
