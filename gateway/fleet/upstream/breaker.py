"""May a target be tried now, and how much of its share? A circuit breaker with half-open trials, and a slow start.

The breaker opens after so many failures without a success between them, stays open for a pause that doubles with each
failed trial, then lets one request through (half-open); that one's fate closes it or opens it again (Nygard, Release
It!, chapter 5). A target that returns gets little at first: its load counts as if it were larger, until the slow start
is over, so that a server with cold caches isn't buried by everybody's least-loaded choice. Pure: times are arguments.
"""

from typing import Final, Literal

State = Literal["closed", "half-open", "open"]

_LEAST_WEIGHT: Final = 0.1


class Breaker:
    """The state of one target. Times are monotonic seconds.

    Args:
        threshold: so many failures in a row open it.
        pause: how long it is open at first, in seconds.
        most: how long at most.
        slow_start: seconds until a target that returned has its full share.
    """

    __slots__ = (
        "_failures", "_most", "_next_pause", "_opened", "_pause", "_slow_start", "_threshold", "_trial", "_up", "slow",
    )  # fmt: skip

    def __init__(self, threshold: int = 5, pause: float = 1.0, most: float = 30.0, slow_start: float = 10.0) -> None:
        self._threshold = threshold
        self._pause, self._most, self._slow_start = pause, most, slow_start
        self._next_pause = pause
        self._failures = 0
        self._opened: float | None = None  # when it opened last; None while closed
        self._trial = False  # half-open, and the one request is under way
        self._up = 0.0  # since when a slow start runs
        self.slow = False
        """Whether one does."""

    def state(self, now: float) -> State:
        if self._opened is None:
            return "closed"
        return "open" if now < self._opened + self._next_pause else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent; say `began` when one is."""
        if self._opened is None:
            return True
        return not self._trial and now >= self._opened + self._next_pause

    def opens_in(self, now: float) -> float:
        """Seconds until a trial is possible; 0 where one is."""
        return 0.0 if self._opened is None else max(0.0, self._opened + self._next_pause - now)

    @property
    def tripped(self) -> bool:
        """Whether it is not closed: whoever sends a request must say `began`."""
        return self._opened is not None

    def began(self) -> None:
        if self._opened is not None:
            self._trial = True

    def abandoned(self) -> None:
        """A request ended without saying anything about the target: its client left, or another was quicker."""
        self._trial = False

    def succeeded(self, now: float) -> bool:
        """A request was answered. Whether that closed the breaker."""
        self._failures = 0
        if self._opened is None:
            return False
        self._opened, self._trial, self._next_pause = None, False, self._pause
        self.returned(now)
        return True

    def failed(self, now: float) -> bool:
        """A request got no answer. Whether that opened the breaker, or kept it open."""
        self._failures += 1
        if self._opened is None:
            if self._failures < self._threshold:
                return False
        elif self._trial:
            self._next_pause = min(2 * self._next_pause, self._most)
        else:
            return False  # sent before it opened: says nothing new
        self._opened, self._trial = now, False
        return True

    def returned(self, now: float) -> None:
        """The target is back: begin its slow start."""
        self._up, self.slow = now, self._slow_start > 0

    def weight(self, now: float) -> float:
        """The share of a full load that it should get: above 0, at most 1."""
        if not self.slow:
            return 1.0
        share = (now - self._up) / self._slow_start
        if share >= 1:
            self.slow = False
            return 1.0
        return max(share, _LEAST_WEIGHT)
