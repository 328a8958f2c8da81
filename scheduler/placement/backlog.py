"""How long would a newcomer wait at a worker? A guess at what the worker is doing, from what was sent there and when.

Reports come late and say nothing of who is next. But which prompts a worker has is known, and so is the order in which
it reads them: as they came, or the shortest first. So the work left is reckoned forward with the clock, and whatever is
seen (a first token, a report) sets it right.
"""

from bisect import bisect_right
from itertools import accumulate
from typing import Protocol


class Reading(Protocol):
    """A prompt that is to be read: in so many seconds, if nothing comes between."""

    left: float


def _left(one: Reading) -> float:
    return one.left


class Backlog:
    """Prompts that a worker has still to read, the next one first."""

    __slots__ = ("_at", "_lefts", "_prompts", "_shortest_first", "_sums")

    def __init__(self, *, shortest_first: bool, now: float) -> None:
        """Nothing is to be read."""
        self._shortest_first = shortest_first
        self._prompts: list[Reading] = []
        self._at = now
        # The seconds left of each in turn, and of all up to it; made when somebody asks.
        self._lefts: list[float] | None = None
        self._sums: list[float] = []

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, prompt: Reading, now: float) -> None:
        """One more."""
        self.advance(now)
        place = len(self._prompts)
        if self._shortest_first:
            place = bisect_right(self._prompts, prompt.left, key=_left)
        self._prompts.insert(place, prompt)
        self._lefts = None

    def remove(self, prompt: Reading, now: float) -> None:
        """It has been read, or is no longer wanted."""
        self.advance(now)
        self._prompts.remove(prompt)
        self._lefts = None

    def advance(self, now: float) -> None:
        """Time has passed."""
        passed = now - self._at
        self._at = now
        if passed > 0 and self._prompts:
            self._read(passed)

    def at_most(self, seconds: float, now: float) -> None:
        """It is known that no more than so many seconds are left."""
        self._read(self.total(now) - seconds)

    def _read(self, seconds: float) -> None:
        """The first ones have been read so much further."""
        self._lefts = None
        for prompt in self._prompts:
            if seconds <= 0:
                break
            read = min(seconds, prompt.left)
            prompt.left -= read
            seconds -= read

    def grow(self, seconds: float) -> float:
        """There is more to do than was thought, by so many seconds: the last one takes them. What nobody takes."""
        if self._shortest_first and self._prompts:
            self._prompts[-1].left += seconds
            self._lefts = None
            return 0.0
        return seconds

    def total(self, now: float) -> float:
        """Seconds until all are read."""
        self.advance(now)
        return sum(map(_left, self._prompts))

    def ahead(self, seconds: float) -> float:
        """Seconds that a newcomer, itself of so many, would wait; as of the last `advance`."""
        if not self._prompts:
            return 0.0
        lefts = self._lefts or self._known()
        place = bisect_right(lefts, seconds) if self._shortest_first else len(lefts)
        return self._sums[place]

    def overtaken(self, seconds: float) -> int:
        """How many would wait for a newcomer of so many seconds; as of the last `advance`."""
        if not self._shortest_first or not self._prompts:
            return 0
        lefts = self._lefts or self._known()
        return len(lefts) - bisect_right(lefts, seconds)

    def _known(self) -> list[float]:
        self._lefts = list(map(_left, self._prompts))
        self._sums = [0.0, *accumulate(self._lefts)]
        return self._lefts
