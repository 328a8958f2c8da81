"""What does the gateway of a simulated fleet know, and when? It decides as production's does, on news as late as there.

First tokens and ends come with the steps' frames, at once. Load reports are made at the end of a step, at most one in
so often or when there is nothing to do any more, and KV events come in batches: both reach the gateway after a delay.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.simulate.policies import Placement
from bench.simulate.worker import SimRequest, SimWorker
from scheduler.blocks import AllBlocksCleared, BlockEvent, BlockStored
from scheduler.placement import Job, Placed, Placer, Report, WorkerInfo
from scheduler.prefix_index import chain, chain_of_digests

CHAIN: Final = "tokens"
"""What simulated workers' caches go by."""
_FORGETTING: Final = 0.02


class Gateway(ABC):
    """Whoever decides. It is told what happens, and asked after each time, and when it wants to be."""

    follows: bool = False
    """Whether it wants the workers' KV events."""

    @abstractmethod
    def arrived(self, request: SimRequest, now: float) -> None:
        """A request comes."""

    @abstractmethod
    def stepped(self, worker: SimWorker, done: Sequence[SimRequest], now: float) -> None:
        """A worker's step has ended, and with it the requests that are ``done``."""

    @abstractmethod
    def decide(self, now: float) -> Iterator[tuple[SimRequest, int | None]]:
        """Which requests go to which worker now; None: to none, for it would be too late."""

    @abstractmethod
    def next_look(self, now: float) -> float | None:
        """When to be asked again though nothing happens; None: never."""


class AtOnce(Gateway):
    """Sends each request on as it comes, by a rule that sees the workers as they are."""

    def __init__(self, placement: Placement, workers: Sequence[SimWorker]) -> None:
        self._placement = placement
        self._workers = workers
        self._new: list[SimRequest] = []

    def arrived(self, request: SimRequest, now: float) -> None:
        self._new.append(request)

    def stepped(self, worker: SimWorker, done: Sequence[SimRequest], now: float) -> None:
        pass

    def decide(self, now: float) -> Iterator[tuple[SimRequest, int | None]]:
        while self._new:
            request = self._new.pop(0)
            yield request, self._placement.place(request, self._workers, now)

    def next_look(self, now: float) -> float | None:
        return None


@dataclass(frozen=True, kw_only=True)
class News:
    """How late a gateway hears of its workers, in seconds.

    Attributes:
        period: load reports are at least so far apart.
        report_delay: a report's way.
        event_delay: the KV events' way, of batches included.
        exact: workers send KV events.
        remembered: without them, tokens that are remembered of each worker; None: what its cache holds.
        reports: workers say how busy they are.
    """

    period: float = 0.05
    report_delay: float = 0.01
    event_delay: float = 0.1
    exact: bool = True
    remembered: int | None = None
    reports: bool = True


class Placing(Gateway):
    """Production's `Placer` in front of simulated workers."""

    def __init__(self, placer: Placer, workers: Sequence[SimWorker], news: News | None = None) -> None:
        """All workers come at time 0, with empty caches."""
        self.placer = placer
        self._news = news or News()
        self.follows = self._news.exact
        self._requests: dict[int, SimRequest] = {}
        self._reports: deque[tuple[float, str, Report]] = deque()
        self._events: deque[tuple[float, str, list[BlockEvent]]] = deque()
        self._due = [0.0] * len(workers)
        # Of the answers seen, the mean: what is expected of the next.
        self._output = 256.0
        for worker in workers:
            pool = worker.scheduler.pool
            size = pool.block_size
            placer.worker_up(
                WorkerInfo(
                    name=str(worker.index),
                    chain=CHAIN,
                    block_tokens=size,
                    kv_tokens=self._news.remembered or pool.num_blocks * size,
                    exact=self._news.exact,
                    shortest_first=self._news.reports and worker.scheduler.config.order == "work",
                ),
                0.0,
            )

    def arrived(self, request: SimRequest, now: float) -> None:
        self._requests[request.uid] = request
        blocks = {CHAIN: chain_of_digests(request.hashes)} if request.hashes else {}
        self.placer.arrived(
            Job(
                uid=request.uid,
                prompt_tokens=request.prompt_len,
                chains=blocks,
                output_tokens=int(self._output),
                priority=request.priority,
                tenant=request.tenant,
                session=str(request.outline.session or ""),
                arrival=now,
            ),
            now,
        )

    def stepped(self, worker: SimWorker, done: Sequence[SimRequest], now: float) -> None:
        placer, news = self.placer, self._news
        for request in worker.begun:
            placer.first_token(request.uid, now)
        for request in done:
            placer.progressed(request.uid, len(request.times), now)
            placer.finished(request.uid, now)
            self._output += _FORGETTING * (len(request.times) - self._output)
        events = worker.scheduler.pool.take_events()
        if events:
            self._events.append((now + news.event_delay, str(worker.index), events))
        if news.reports and (now >= self._due[worker.index] or worker.idle):
            self._due[worker.index] = now + news.period
            self._reports.append((now + news.report_delay, str(worker.index), self._report(worker)))

    def decide(self, now: float) -> Iterator[tuple[SimRequest, int | None]]:
        self._hear(now)
        for decision in self.placer.decide(now):
            request = self._requests.pop(int(decision.job.uid))
            yield request, int(decision.worker) if isinstance(decision, Placed) else None

    def next_look(self, now: float) -> float | None:
        times = [queue[0][0] for queue in (self._reports, self._events) if queue]
        wanted = self.placer.next_look(now)
        if wanted is not None:
            times.append(wanted)
        return min(times, default=None)

    def _report(self, worker: SimWorker) -> Report:
        load = worker.load
        return Report(
            backlog=load.backlog,
            waiting_tokens=load.waiting_tokens,
            waiting=load.waiting,
            running=load.running,
            decoding=load.decoding,
            context=load.decode_context,
            kv_used=load.kv_used,
            kv_total=load.kv_total,
            speed=worker.scheduler.steptime.coefficients,
            age=self._news.report_delay,
        )

    def _hear(self, now: float) -> None:
        while self._reports and self._reports[0][0] <= now:
            _, name, report = self._reports.popleft()
            self.placer.report(name, report, now)
        while self._events and self._events[0][0] <= now:
            _, name, events = self._events.popleft()
            for event in events:
                if isinstance(event, BlockStored):
                    self.placer.stored(name, chain(event.hashes))
                elif isinstance(event, AllBlocksCleared):
                    self.placer.cleared(name)
                else:
                    self.placer.removed(name, chain(event.hashes))


def placing(placer: Callable[[], Placer], news: News | None = None) -> Callable[[Sequence[SimWorker]], Gateway]:
    """What makes a `Fleet`'s gateway of a new placer."""
    return lambda workers: Placing(placer(), workers, news)
