"""Who waits, and in which order? Kept sorted, so that a long queue costs an event little more than a short one.

A job's key is its work, and a credit for each second that it has waited. The credit grows alike for everybody, so that
it amounts to a debit for each second that it came later, and the order doesn't change with time. Jobs of one priority
and tenant are one line; which line is next is asked anew each time, for tenants take turns.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import merge
from itertools import groupby
from math import inf

from scheduler.placement.job import Job
from scheduler.placement.turns import Turns

Class = tuple[int, str]


class Waiting:
    """A job that waits, what is cached of it where (tokens), and its least work (seconds)."""

    __slots__ = ("hits", "job", "key", "looked", "number", "work")

    def __init__(self, job: Job, number: int) -> None:
        self.job = job
        self.number = number
        self.hits: dict[str, int] = {}
        self.looked = -inf
        self.work = 0.0
        # Its place in its line; equal ones in the order of their coming.
        self.key = (inf, number)


def _key(one: Waiting) -> tuple[float, int]:
    return one.key


class Queue:
    """Those that wait: a higher priority first, then the tenant that is least ahead, then the smallest key."""

    __slots__ = ("_ageing", "_lines", "_turns")

    def __init__(self, ageing: float, turns: Turns) -> None:
        """``ageing``: the credit in seconds of work for a second's wait."""
        self._ageing = ageing
        self._turns = turns
        self._lines: dict[Class, list[Waiting]] = {}

    def add(self, one: Waiting) -> None:
        """One more waits; its work is known."""
        one.key = (one.work + self._ageing * one.job.arrival, one.number)
        insort(self._lines.setdefault((one.job.priority, one.job.tenant), []), one, key=_key)

    def remove(self, one: Waiting) -> None:
        """It waits no more."""
        kind = (one.job.priority, one.job.tenant)
        line = self._lines[kind]
        del line[bisect_left(line, one.key, key=_key)]
        if not line:
            del self._lines[kind]

    def ordered(self) -> Iterator[Waiting]:
        """The next one first. Not to be gone on with after a change."""
        turns = self._turns
        least = turns.least()

        def place(kind: Class) -> tuple[int, int]:
            return -kind[0], turns.ahead(kind[1], least)

        for _, kinds in groupby(sorted(self._lines, key=place), key=place):
            lines = [self._lines[kind] for kind in kinds]
            yield from merge(*lines, key=_key) if len(lines) > 1 else lines[0]
