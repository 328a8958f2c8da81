"""Will one more request fit the KV pool, not only now but until it ends?

What runs now grows with every step. Admitting by what is free now ends in preemptions, reserving for the longest
possible answer wastes most of the pool. So the future is forecast from the past, as LightLLM's past-future scheduler
does (Gong et al., ASPLOS 2025): the expected length of an answer is a quantile of the lengths seen lately, among those
longer than what it has generated already. The pool's use peaks just before one of the running requests ends, so the
forecast looks at these moments only.
"""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable

from scheduler.request import Request

# Answers seen before the first one: forgotten like any others.
_PRIOR = (16, 32, 64, 128, 256, 512, 1024)


class OutputLengths:
    """The distribution of the latest ``window`` answers' lengths, in tokens."""

    __slots__ = ("_recent", "_sorted", "_window")

    def __init__(self, window: int = 1024) -> None:
        self._window = window
        self._recent = deque(_PRIOR)
        self._sorted = list(_PRIOR)

    def observe(self, length: int) -> None:
        """An answer ended after ``length`` tokens."""
        recent, ordered = self._recent, self._sorted
        if len(recent) >= self._window:
            del ordered[bisect_right(ordered, recent.popleft()) - 1]
        recent.append(length)
        insort(ordered, length)

    def remaining(self, requests: Iterable[Request], quantile: float) -> list[int]:
        """How many more tokens to expect of each request's answer.

        That is a quantile of the answers longer than what it has, but never more than it may get. Where none was ever
        longer, it is expected to become half as long again.
        """
        ordered = self._sorted
        size = len(ordered)
        expected = []
        for request in requests:
            known = len(request.tokens)
            generated = known - request.prompt_len
            longer = bisect_right(ordered, generated)
            if longer == size:
                more = generated // 2 + 1
            else:
                more = ordered[longer + int(quantile * (size - longer))] - generated
            most = request.limit - known
            expected.append(more if more < most else most)
        return expected


class Forecast:
    """The pool's use to come, for one step: what runs, in the order in which it is expected to end."""

    __slots__ = ("_block_size", "_ends", "_lengths", "_quantile")

    def __init__(self, running: Iterable[Request], lengths: OutputLengths, quantile: float, block_size: int) -> None:
        self._lengths = lengths
        self._quantile = quantile
        self._block_size = block_size
        alive = list(running)
        owns = [len(request.blocks) - request.shared for request in alive]
        # (tokens until it ends, blocks that its end will surely free) for each, the next to end first.
        self._ends = sorted(zip(lengths.remaining(alive, quantile), owns, strict=True))

    def admit(self, request: Request, own: int, used: int, total: int) -> bool:
        """Whether the pool will hold everything if ``request`` runs too; if so, it is counted as running.

        Args:
            own: blocks that it would hold now and that were not found in the cache.
            used: blocks that would be held now in all.
            total: blocks in the pool.
        """
        end = (self._lengths.remaining((request,), self._quantile)[0], own)
        ends = self._ends
        at = bisect_right(ends, end)
        ends.insert(at, end)
        alive = len(ends)
        room = total - used
        per_block = 1 / self._block_size
        for remaining, freed in ends:
            # Just before this one ends, all that are still alive have grown by its remaining tokens.
            if alive * remaining * per_block > room:
                del ends[at]
                return False
            alive -= 1
            room += freed
        return True
