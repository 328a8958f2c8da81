"""Which copies wait for a target, and may it be asked at all? A short queue, and rest for a target that keeps failing.

Nothing here may grow with what comes: who finds no room is dropped by whoever brought it.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

WAITING: Final = 64
UNDER_WAY: Final = 8
FAILURES: Final = 5
"""So many in a row, and a target is left alone for a second, then for two, four, up to `LONGEST_REST`."""
LONGEST_REST: Final = 30.0

T = TypeVar("T")


class Line(Generic[T]):
    """What waits for one target. ``under_way`` counts those who ask it; they call `next` until there is nothing left.

    Args:
        clock: seconds, of a clock that is never set.
    """

    __slots__ = ("_clock", "_failures", "_rests", "_until", "under_way", "waiting")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = self._rests = 0
        self._until = 0.0
        self.waiting: deque[T] = deque()
        self.under_way = 0

    @property
    def takes(self) -> bool:
        """Whether there is room for one more."""
        return len(self.waiting) < WAITING and (self._failures < FAILURES or self._clock() >= self._until)

    @property
    def wants_asker(self) -> bool:
        """Whether one more may ask; while it isn't known whether the target is well again, one does."""
        return self.under_way < (UNDER_WAY if self._failures < FAILURES else 1)

    @property
    def rest(self) -> float:
        """For how many seconds the target is left alone."""
        return max(0.0, self._until - self._clock()) if self._failures >= FAILURES else 0.0

    def next(self) -> T | None:
        """What is to be asked next; None: whoever calls should stop asking."""
        if not self.waiting or (self._failures >= FAILURES and self.under_way > 1):
            return None
        return self.waiting.popleft()

    def answered(self) -> None:
        """The target has answered."""
        self._failures = self._rests = 0

    def failed(self) -> list[T]:
        """The target has failed; what waited in vain."""
        self._failures += 1
        if self._failures < FAILURES:
            return []
        if self._clock() >= self._until:  # not one of those that were under way when the rest began
            self._until = self._clock() + min(LONGEST_REST, 2.0 ** min(self._rests, 10))
            self._rests += 1
        return self.clear()

    def clear(self) -> list[T]:
        """Let nothing wait any longer; what did."""
        dropped = list(self.waiting)
        self.waiting.clear()
        return dropped
