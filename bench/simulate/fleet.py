"""What happens when, in a simulated fleet? A queue of events: arrivals, ends of steps, and looks at the whole.

At one moment arrivals come first, then idle workers wake, then steps end, then the gateway is asked; everything else is
decided by the order of the workload and of the workers. So a simulation of the same workload, settings and seed is the
same to the last bit.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush, heapreplace
from math import inf
from typing import NamedTuple

import numpy as np

from bench.load.records import Record
from bench.load.workload import Load, Outline
from bench.simulate.gateway import AtOnce, Gateway
from bench.simulate.policies import Placement
from bench.simulate.prompts import Prompts
from bench.simulate.series import Extras, Series, extras_of
from bench.simulate.worker import Setting, SimRequest, SimWorker

# Kinds of events, in the order in which they happen at one moment.
_ARRIVAL, _WAKE, _STEP_END, _ASK, _LOOK = range(5)


class Progress(NamedTuple):
    """How far a simulation is: seconds of its own time, and requests."""

    now: float
    begun: int
    ended: int


class Fleet:
    """Workers of one kind behind one gateway."""

    def __init__(
        self,
        setting: Setting,
        workers: int,
        placement: Placement | Callable[[Sequence[SimWorker]], Gateway],
        *,
        interval: float = 10.0,
        tenant_of: Callable[[Outline], str] = lambda outline: "",
    ) -> None:
        """Idle workers with empty caches. ``placement`` is a rule or makes a gateway; ``interval``: see `Series`."""
        self.workers = [SimWorker(index, setting) for index in range(workers)]
        self.gateway = placement(self.workers) if callable(placement) else AtOnce(placement, self.workers)
        if self.gateway.follows:
            for worker in self.workers:
                worker.scheduler.pool.record_events()
        self.series = Series(interval)
        self._setting = setting
        self._prompts = Prompts(setting.block_size)
        self._tenant_of = tenant_of
        self._now = 0.0
        self._woken: set[int] = set()
        # When the gateway will be asked though nothing happens.
        self._asking = inf
        self._live = self._begun = self._ended = 0

    def run(
        self,
        load: Load,
        record: Callable[[Record], None],
        progress: Callable[[Progress], None] = lambda state: None,
    ) -> Extras:
        """Serve a workload to its end. To be called once.

        Args:
            load: what is asked.
            record: gets what became of each request, in the order in which they end.
            progress: called every few thousand events.

        Raises:
            RuntimeError: requests are left that no worker works on (a fault of the scheduler).
        """
        agenda = Agenda(load)
        with _uncollected():
            self._loop(agenda, record, progress)
        if self._live:
            raise RuntimeError(f"{self._live} requests are left, and no worker has anything planned")
        progress(Progress(self._now, self._begun, self._ended))
        return extras_of(self.workers, self.series, self._now)

    def _loop(self, agenda: "Agenda", record: Callable[[Record], None], progress: Callable[[Progress], None]) -> None:
        workers = self.workers
        events: list[tuple[float, int, int]] = [(self.series.interval, _LOOK, 0)]
        for at, number in agenda.first():
            heappush(events, (at, _ARRIVAL, number))
        count = 0
        while events:
            now, kind, which = events[0]
            count += 1
            if not count % 20_000:
                progress(Progress(now, self._begun, self._ended))
            if kind == _STEP_END:
                self._now = now
                done, ends = workers[which].step_ended(now)
                if ends is None:
                    heappop(events)
                else:
                    heapreplace(events, (ends, _STEP_END, which))
                for request in done:
                    record(self._record(request, now))
                    for at, number in agenda.ended(request.outline, now, request):
                        heappush(events, (at, _ARRIVAL, number))
                self.gateway.stepped(workers[which], done, now)
                self._ask(events, agenda, record, now)
                continue
            heappop(events)
            if kind == _ARRIVAL:
                self._now = now
                outline, length, before = agenda.pop(which)
                failed = self._arrive(outline, length, before, now)
                if failed is not None:
                    record(failed)
                    for at, number in agenda.ended(outline, now):
                        heappush(events, (at, _ARRIVAL, number))
                else:
                    self._ask(events, agenda, record, now)
                if not outline.turn:
                    for at, number in agenda.next():
                        heappush(events, (at, _ARRIVAL, number))
            elif kind == _WAKE:
                self._woken.discard(which)
                ends = workers[which].wake(now)
                if ends is not None:
                    heappush(events, (ends, _STEP_END, which))
            elif kind == _ASK:
                if now == self._asking:
                    self._asking = inf
                self._ask(events, agenda, record, now)
            else:
                self.series.look(workers)
                if events:
                    heappush(events, (self.series.interval * (len(self.series.running) + 1), _LOOK, 0))

    def _ask(
        self, events: list[tuple[float, int, int]], agenda: "Agenda", record: Callable[[Record], None], now: float
    ) -> None:
        """Ask the gateway what goes where, and when it wants to be asked next."""
        gateway = self.gateway
        for request, chosen in gateway.decide(now):
            if chosen is None:
                self._live -= 1
                record(self._refused(request.outline, now, 429, "it can't be answered in time"))
                for at, number in agenda.ended(request.outline, now):
                    heappush(events, (at, _ARRIVAL, number))
                continue
            worker = self.workers[chosen]
            worker.add(request)
            if worker.idle and chosen not in self._woken:
                self._woken.add(chosen)
                heappush(events, (now, _WAKE, chosen))
        wanted = gateway.next_look(now)
        if wanted is not None and wanted < self._asking and (self._live or events):
            self._asking = wanted
            heappush(events, (wanted, _ASK, 0))

    def _arrive(self, outline: Outline, length: int, before: Sequence[bytes], now: float) -> Record | None:
        """A request arrives: it goes to the gateway, or it has a record at once if no worker can take it."""
        self._begun += 1
        try:
            request = SimRequest(self._setting, self._prompts, outline, now, length, before, self._tenant_of(outline))
            fault = self.workers[0].fault(request)
        except ValueError as error:
            fault = str(error)
        if fault:
            return self._refused(outline, now, 400, fault)
        self._live += 1
        self.gateway.arrived(request, now)
        return None

    def _refused(self, outline: Outline, now: float, status: int, error: str) -> Record:
        self._ended += 1
        at = rounded(now)
        return Record(
            index=outline.index,
            at=at,
            outcome="failed",
            end=at,
            sent=at,
            asked_tokens=outline.output_tokens,
            status=status,
            error=error,
            session=outline.session,
            group=outline.group,
        )

    def _record(self, request: SimRequest, now: float) -> Record:
        self._live -= 1
        self._ended += 1
        times = np.rint(np.frombuffer(request.times) * 1e6)
        return Record(
            index=request.uid,
            at=rounded(request.arrival),
            outcome="ok",
            end=rounded(now),
            sent=rounded(request.arrival),
            first=rounded(request.times[0]),
            last=rounded(request.times[-1]),
            gaps=(np.diff(times) / 1e6).tolist(),
            gap_tokens=[1] * (len(request.times) - 1),
            prompt_tokens=request.prompt_len,
            cached_tokens=request.cached,
            output_tokens=len(request.times),
            asked_tokens=request.max_tokens,
            status=200,
            session=request.outline.session,
            group=request.outline.group,
        )


class _Talk:
    """A conversation: its turns to come, and the length (tokens) and KV blocks of what was said."""

    def __init__(self) -> None:
        self.turns: deque[Outline] = deque()
        self.length = 0
        self.blocks: list[bytes] = []


class Agenda:
    """Who comes when: those with a time at that time, the others after somebody's end."""

    def __init__(self, load: Load) -> None:
        self._outlines: dict[int, Outline] = {}
        self._talks: dict[int, _Talk] = {}
        self._concurrency = load.concurrency
        self._duration = load.duration
        self._coming = load.outlines()
        self._next = next(self._coming, None)

    def first(self) -> Iterator[tuple[float, int]]:
        """Who comes without anybody's end: the next one of the schedule, or all users of a closed loop."""
        for _ in range(self._concurrency or 1):
            yield from self._take(0.0)

    def next(self) -> Iterator[tuple[float, int]]:
        """The next one of the schedule; none in a closed loop."""
        if self._concurrency is None:
            yield from self._take(0.0)

    def ended(self, outline: Outline, now: float, request: SimRequest | None = None) -> Iterator[tuple[float, int]]:
        """Who comes because a request ended ``now``: the next turn of its session, or anybody in a closed loop."""
        if outline.session is not None:
            talk = self._talks[outline.session]
            if request is not None:
                talk.length, talk.blocks = len(request.tokens), request.hashes
            if talk.turns:
                following = talk.turns.popleft()
                self._outlines[following.index] = following
                yield max(now + following.after, following.at or 0.0), following.index
                return
            del self._talks[outline.session]
        if self._concurrency is not None:
            yield from self._take(now)

    def pop(self, number: int) -> tuple[Outline, int, Sequence[bytes]]:
        """A request that arrives, with the length and the blocks of what was said before."""
        outline = self._outlines.pop(number)
        if outline.session is None:
            return outline, 0, ()
        talk = self._talks[outline.session]
        return outline, talk.length, talk.blocks

    def _take(self, now: float) -> Iterator[tuple[float, int]]:
        """The next request or conversation; ``now`` is when it comes if it has no time."""
        outline = self._next
        if outline is None or (outline.at is None and self._duration is not None and now >= self._duration):
            return
        self._outlines[outline.index] = outline
        turns = self._talks.setdefault(outline.session, _Talk()).turns if outline.session is not None else None
        while (following := next(self._coming, None)) is not None and following.turn and turns is not None:
            turns.append(following)
        self._next = following
        yield now if outline.at is None else outline.at, outline.index


def rounded(seconds: float) -> float:
    """To whole microseconds: shorter in a file, and no digit more than means something."""
    return round(seconds, 6)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Spare the collector a walk through millions of objects that are in no cycles."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
