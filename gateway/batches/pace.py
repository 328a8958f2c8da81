"""How many requests of a batch are tried at a time, where its key is limited in how much it may use?

As many as there are places, until a limit is reached. Then none for as long as the limit says, and after that half as
many as there were; when as many have been answered as may be tried, one more may. So after a few of these rounds about
as many are tried as are let in, whichever limit it is: additive increase, multiplicative decrease, as TCP finds its
share of a line (Jacobson, Congestion avoidance and control, 1988).
"""

import asyncio
import math
import random
from collections.abc import Callable
from time import monotonic
from typing import Final

_LONGEST: Final = 60.0  # seconds; limits may be raised meanwhile


class Pace:
    """The pace of one batch. ``clock``: seconds, of a clock that is never set."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._most = math.inf
        self._under_way = 0
        self._until = 0.0
        self._moved = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return self._under_way > 0

    async def enter(self) -> None:
        """Wait until one more may be tried. It is under way from then on, until `leave`."""
        while True:
            if (pause := self._until - self._clock()) > 0:
                await asyncio.sleep(pause)
            elif self._under_way + 1 > self._most:
                await self.left()
            else:
                break
        self._under_way += 1

    def leave(self) -> None:
        """One is under way no more."""
        self._under_way -= 1
        self._moved.set()

    async def left(self) -> None:
        """Wait until one that is under way leaves."""
        self._moved.clear()
        await self._moved.wait()

    def slow_down(self, seconds: float) -> None:
        """A limit was reached, and will be for so many ``seconds``."""
        now = self._clock()
        if now >= self._until:  # the first one of its round
            self._most = max(1, self._under_way // 2)
        self._until = max(self._until, now + min(seconds, _LONGEST) * random.uniform(1.0, 1.1))

    def speed_up(self) -> None:
        """One was let in."""
        self._most += 1 / self._most
