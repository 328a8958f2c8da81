"""When is a request sent, where targets say how busy they are? Once its target has next to nothing left to read.

Until then it waits here, not in a target's queue: so nothing is bound to the wrong target early, what waits still
profits from what gets cached, and short prompts don't wait behind long ones. Who waits is ordered by the work of the
prompt, less a credit for each second that it has waited; planned in this order against the targets, each as placement
would choose for it; and sent if its target is about to be free. (DESIGN: held placement, or late binding.)

What a target has left is known from what was sent there and the first bytes that came back; and how fast it reads from
the time in which it had something to read. As long as nobody waits and the target that was chosen has little left, a
request is not held, and all of this costs it 0.3 µs.
"""

import asyncio
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Final

from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.target import Target
from gateway.lane.placing import PER_REQUEST, CacheAware
from gateway.wire import errors

if TYPE_CHECKING:
    from gateway.lane.exchange import Exchange

WORK_LEFT: Final = 0.15
"""Seconds: a target that has less than so much left to read is about to be free."""
_AGEING: Final = 0.2
_KV_SHARE: Final = 0.95
_PATIENCE: Final = 0.5  # seconds that a request waits for room in a KV cache
_LEAST: Final = 0.3  # seconds of reading that a target's pace is known from
_SPAN: Final = 20.0  # seconds of reading, after which older ones count half
_SEEN: Final = 0.8  # so much of what is unread may have been read without a first byte to show for it
_WINDOW: Final = 16  # requests that are planned at a time, for each target
_SOONEST: Final = 0.002  # seconds between two looks, and the longest that there are
_LATEST: Final = 0.3


class Pace:
    """How fast a target reads prompts. ``since``: it has had something to read since then, or its last first byte."""

    __slots__ = ("_busy", "_done", "seconds", "since")

    def __init__(self) -> None:
        self.since = 0.0
        self.seconds = 0.0
        """For a byte; 0 before that is known."""
        self._busy = self._done = 0.0

    def read(self, size: int, sent: float, now: float) -> None:
        """It has read ``size`` bytes of a request that was ``sent`` then."""
        self._busy += now - max(self.since, sent)
        self._done += size
        self.since = now
        if self._busy > _LEAST and self._done:
            self.seconds = self._busy / self._done
        if self._busy > _SPAN:
            self._busy *= 0.5
            self._done *= 0.5


@dataclass(order=True, slots=True)
class _Held:
    key: float
    number: int
    exchange: "Exchange" = field(compare=False)
    stream: bool = field(compare=False)
    seconds: float = field(compare=False)
    since: float = field(compare=False)


class Holding:
    """The requests of one lane that wait.

    Args:
        placing: chooses for them.
        ready: the targets that a request for a model may get now.
        max_wait: who can't be sent and read within so many seconds is refused; None: nobody is.
        longest: seconds for which a request waits at most.
    """

    def __init__(
        self,
        placing: CacheAware,
        ready: Callable[[str, float], list[Target]],
        max_wait: float | None = None,
        longest: float = 300.0,
        work_left: float = WORK_LEFT,
    ) -> None:
        self._placing = placing
        self._ready = ready
        self._max_wait = max_wait
        self._longest = longest if max_wait is None else min(longest, max_wait)
        self._work_left = work_left
        self._paces: dict[Target, Pace] = {}
        self._order: list[_Held] = []
        self._entries: dict[Exchange, _Held] = {}
        self._number = 0
        self._soon: asyncio.Handle | None = None
        self._at: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._order)

    def holds(self, exchange: "Exchange", target: Target, ready: list[Target], stream: bool, now: float) -> bool:
        """Whether a request for which ``target`` was chosen waits; `Exchange.send_held` will be called if it does.

        Raises:
            ApiError: 429, it would have to wait too long.
        """
        pace = self._paces.get(target)
        if pace is None:
            pace = self._paces[target] = Pace()
        unread = target.backlog - PER_REQUEST * target.in_flight
        if not self._order and (unread * pace.seconds < self._work_left or not self._knows(ready)):
            if unread <= 0:
                pace.since = now
            return False
        self._enter(exchange, target, ready, stream, pace, now)
        return True

    def leave(self, exchange: "Exchange") -> None:
        """A request waits no more."""
        self._remove(self._entries[exchange])
        self.touch()

    def answered(self, connection: Connection) -> None:
        """The first byte of an answer came; to be told before placement is."""
        pace = self._paces.get(connection.target)
        if pace is not None and connection.ticket >= 0:
            pace.read(connection.ticket, connection.sent, connection.last)
        if self._order:
            self.touch()

    def touch(self) -> None:
        """Something has changed: look, as soon as what happens now is over, whether anybody can be sent."""
        if self._order and self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._look)

    def forget(self, target: Target) -> None:
        """A target has gone."""
        self._paces.pop(target, None)
        self.touch()

    def _knows(self, ready: list[Target]) -> bool:
        return all(target.load is not None for target in ready)

    def _enter(
        self, exchange: "Exchange", target: Target, ready: list[Target], stream: bool, pace: Pace, now: float
    ) -> None:
        seconds = self._placing.work(exchange.prompt) * pace.seconds
        if self._max_wait is not None:
            ahead = sum(self._left(one, now) for one in ready) + sum(held.seconds for held in self._order)
            expected = ahead / len(ready) + seconds
            if expected > self._max_wait:
                raise errors.overloaded(expected - self._max_wait)
        self._number += 1
        held = _Held(seconds + _AGEING * now, self._number, exchange, stream, seconds, now)
        insort(self._order, held)
        self._entries[exchange] = held
        self._placing.waiting += 1
        self.touch()

    def _remove(self, held: _Held) -> None:
        self._order.remove(held)
        del self._entries[held.exchange]
        self._placing.waiting -= 1

    def _left(self, target: Target, now: float) -> float:
        """Seconds that a target will take to read what it has."""
        unread = target.backlog - PER_REQUEST * target.in_flight
        pace = self._paces.get(target)
        if unread <= 0 or pace is None:
            return 0.0
        return unread * pace.seconds - min(now - pace.since, _SEEN * unread * pace.seconds)

    def _is_free(self, target: Target, held: _Held, now: float) -> bool:
        if self._left(target, now) >= self._work_left:
            return False
        load = target.load
        full = load is not None and load.kv_used > _KV_SHARE and target.in_flight > 0
        return not full or now - held.since > _PATIENCE

    def _look(self) -> None:
        """Plan those that wait, the next one first, and send those whose target is about to be free."""
        self._soon = None
        now = perf_counter()
        planned: dict[Target, int] = {}
        busy: set[str] = set()  # models all of whose targets are
        left = _WINDOW * max(1, len(self._paces))
        try:
            for held in list(self._order):
                model = held.exchange.model
                ready = self._ready(model, now)
                if not ready or now - held.since > self._longest:
                    self._remove(held)
                    held.exchange.refuse_held(now)
                elif left > 0 and model not in busy:
                    if any(self._is_free(target, held, now) for target in ready):
                        self._plan(held, ready, planned, now)
                        left -= 1
                    else:
                        busy.add(model)
        finally:
            for target, size in planned.items():
                target.backlog -= size
        self._arm(now)

    def _plan(self, held: _Held, ready: list[Target], planned: dict[Target, int], now: float) -> None:
        target = self._placing.choose(ready, held.exchange.prompt, now)
        if self._is_free(target, held, now):
            self._remove(held)
            pace = self._paces.get(target)
            if pace is not None and target.backlog - PER_REQUEST * target.in_flight <= planned.get(target, 0):
                pace.since = now
            held.exchange.send_held(target, held.stream)
            return
        size = self._placing.work(held.exchange.prompt)
        target.backlog += size
        planned[target] = planned.get(target, 0) + size

    def _arm(self, now: float) -> None:
        """Look again when a target will be about to be free, though nothing happens."""
        if self._at is not None:
            self._at.cancel()
            self._at = None
        if self._order:
            lefts = [left for target in self._paces if (left := self._left(target, now)) > self._work_left]
            wait = min([left - self._work_left for left in lefts], default=_LATEST)
            self._at = asyncio.get_running_loop().call_later(min(max(wait, _SOONEST), _LATEST), self._look_again)

    def _look_again(self) -> None:
        self._at = None
        if self._soon is None:
            self._look()
