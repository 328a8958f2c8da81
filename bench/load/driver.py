"""When is each request sent? The clock of a load test: open loop, closed loop, and conversations.

Open loop: a request goes out at its own time, whether or not the answers before it have come; when the client itself is
late, the record says so. Closed loop: so many at a time, each after another's end.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

import msgspec

from bench.load.client import Client, History
from bench.load.histogram import Histogram
from bench.load.records import Ask, Record

_SAMPLE = 8  # progress has the gaps of one request in so many: all of them took 15 us a request of 32 tokens


class Source(Protocol):
    """Where the requests to come are taken from, in their order."""

    async def take(self) -> Ask | None:
        """The next one; None after the last."""


class Listed:
    """A `Source` of what an iterator has."""

    def __init__(self, asks: Iterator[Ask]) -> None:
        self._asks = asks

    async def take(self) -> Ask | None:
        return next(self._asks, None)


class Progress(msgspec.Struct, kw_only=True):
    """What a client has done so far; several clients' add up.

    ``waiting`` requests have begun and have no token yet. Times between tokens (``itl``) are a sample's.
    """

    elapsed: float = 0.0
    offered: int = 0
    finished: int = 0
    outcomes: dict[str, int] = {}
    output_tokens: int = 0
    interrupted: int = 0
    waiting: int = 0
    ttft: Histogram = msgspec.field(default_factory=Histogram)
    itl: Histogram = msgspec.field(default_factory=Histogram)
    latency: Histogram = msgspec.field(default_factory=Histogram)
    delay: Histogram = msgspec.field(default_factory=Histogram)

    @property
    def in_flight(self) -> int:
        """How many requests have been begun and have not ended."""
        return self.offered - self.finished - self.interrupted

    def note(self, record: Record) -> None:
        """Count a request that has ended."""
        self.finished += 1
        self.outcomes[record.outcome] = self.outcomes.get(record.outcome, 0) + 1
        self.output_tokens += record.output_tokens
        if record.ttft is not None:
            self.ttft.add(record.ttft)
        if record.delay is not None:
            self.delay.add(record.delay)
        if record.outcome == "ok":
            self.latency.add(record.latency)
        if record.index % _SAMPLE == 0:
            add_gaps(self.itl, record)


def add_gaps(itl: Histogram, record: Record) -> None:
    """Count the times between a record's tokens: of several in one chunk, all but the first came 0 s after another."""
    itl.add_all(record.gaps)
    if record.first is not None:
        itl.add(0.0, record.output_tokens - 1 - len(record.gaps))


def merged(parts: list[Progress]) -> Progress:
    """Several clients' progress as one."""
    whole = Progress(elapsed=max((part.elapsed for part in parts), default=0.0))
    for part in parts:
        for name in ("offered", "finished", "output_tokens", "interrupted", "waiting"):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        for outcome, count in part.outcomes.items():
            whole.outcomes[outcome] = whole.outcomes.get(outcome, 0) + count
    for name in ("ttft", "itl", "latency", "delay"):
        getattr(whole, name).merge(getattr(part, name) for part in parts)
    return whole


class _Talk:
    """A conversation under way: its turns to come, and when the last answer ended."""

    def __init__(self) -> None:
        self.turns: deque[Ask] = deque()
        self.history = History()
        self.ended = 0.0
        self.running = False


class Driver:
    """Takes requests from a source and asks them; each record goes to ``sink`` as its request ends.

    ``concurrency`` makes it a closed loop of so many users, who take the next request (or whole conversation) when they
    are done with one, until ``duration`` seconds have passed.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        sink: Callable[[Record], None],
        concurrency: int | None = None,
        duration: float | None = None,
    ) -> None:
        self.progress = Progress()
        self._client = client
        self._source = source
        self._sink = sink
        self._concurrency = concurrency
        self._duration = math.inf if duration is None else duration
        self._talks: dict[int, _Talk] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Until the last answer has ended, or `stop`."""
        if self._concurrency is None:
            self._spawn(self._open())
        else:
            for _ in range(self._concurrency):
                self._spawn(self._user())
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not task.cancelled():
                    task.result()
        self._client.close()

    def stop(self) -> None:
        """Ask no more, and drop what is under way: it is counted as interrupted, and not recorded."""
        for task in self._tasks:
            task.cancel()

    def read(self) -> Progress:
        """The progress so far."""
        self.progress.elapsed, self.progress.waiting = self._client.now(), self._client.waiting
        return self.progress

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)

    async def _open(self) -> None:
        while (ask := await self._source.take()) is not None:
            if ask.at is not None:
                await self._until(ask.at)
            if ask.session is None:
                self._spawn(self._ask(ask, ask.at if ask.at is not None else self._client.now()))
                continue
            talk = self._talk(ask)
            if not talk.running:
                talk.running = True
                self._spawn(self._converse(talk))

    async def _user(self) -> None:
        while self._client.now() < self._duration and (ask := await self._source.take()) is not None:
            if ask.session is None:
                await self._ask(ask, self._client.now())
                continue
            talk = self._talk(ask)
            if not talk.running:  # otherwise another user is having it, who will come to this turn
                talk.running = True
                await self._converse(talk)

    def _talk(self, ask: Ask) -> _Talk:
        assert ask.session is not None
        talk = self._talks.setdefault(ask.session, _Talk())
        talk.turns.append(ask)
        return talk

    async def _converse(self, talk: _Talk) -> None:
        while talk.turns and (self._concurrency is None or self._client.now() < self._duration):
            ask = talk.turns.popleft()
            due = talk.ended + ask.after if ask.turn else 0.0
            if self._concurrency is None:
                due = max(due, ask.at if ask.at is not None else 0.0) or self._client.now()
            await self._until(due)
            talk.ended = await self._ask(ask, due if self._concurrency is None else self._client.now(), talk.history)
        talk.running = False

    async def _ask(self, ask: Ask, at: float, history: History | None = None) -> float:
        """One request; when it ended."""
        self.progress.offered += 1
        try:
            record, text = await self._client.ask(ask, at, history)
        except asyncio.CancelledError:
            self.progress.interrupted += 1
            raise
        if history is not None and record.outcome == "ok":
            history.add(ask, text)
        self.progress.note(record)
        self._sink(record)
        return record.end

    async def _until(self, when: float) -> None:
        """Never early; as late as the event loop's timer is coarse (1 ms)."""
        while (left := when - self._client.now()) > 0:
            await asyncio.sleep(math.ceil(left * 1000) / 1000)


async def drive(driver: Driver, stop: asyncio.Event | None = None) -> Progress:
    """Run a driver, and stop it when ``stop`` is set; its progress in the end."""
    if stop is None:
        await driver.run()
        return driver.read()
    running = asyncio.ensure_future(driver.run())
    watching = asyncio.ensure_future(stop.wait())
    await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        driver.stop()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    await running
    return driver.read()
