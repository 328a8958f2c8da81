"""What does a gateway process that follows tell the one that leads of its shadows? What came of each copy.

Each process copies, asks and compares for the requests that come to it, so that of all requests the share is copied
that the configuration says, and no process has the work of all. Standings and pairs are the leader's.
"""

from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Final

import msgspec

from gateway.traffic.shadow.compare import Comparison
from gateway.traffic.shadow.judging import Judged
from gateway.traffic.shadow.standing import Key, Loss

_MOST: Final = 1 << 20  # bytes of pairs that are told within `_WINDOW`: of more, nothing but how they differ
_WINDOW: Final = 0.1  # seconds


class PairJudged(msgspec.Struct, frozen=True, array_like=True, tag="pair"):
    """Two answers were compared. ``line``: what is kept of them, empty where nothing is.

    ``left``: something would have been, but it was too much.
    """

    key: Key
    comparison: Comparison
    paths: tuple[str, ...]
    line: bytes
    left: bool


class CopiesLost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """So many copies came to nothing."""

    key: Key
    loss: Loss
    why: str
    count: int


class Telling:
    """What is told of the shadows of a process that follows.

    Args:
        tell: has something told.
        clock: seconds, of a clock that is never set.
    """

    def __init__(self, tell: Callable[[PairJudged | CopiesLost], None], clock: Callable[[], float] = monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._since = 0.0
        self._room = 0
        self._lost: Counter[tuple[Key, Loss, str]] = Counter()

    def judged(self, key: Key, judged: Judged) -> None:
        """Two answers were compared."""
        now = self._clock()
        if now - self._since >= _WINDOW:
            self._since, self._room = now, _MOST
        line = judged.line if len(judged.line) <= self._room else b""
        self._room -= len(line)
        self._tell(PairJudged(key, judged.comparison, judged.paths, line, line != judged.line))

    def lost(self, key: Key, loss: Loss, why: str) -> None:
        """A copy came to nothing: there may be many of these, which `flush` tells together."""
        self._lost[key, loss, why] += 1

    def flush(self) -> None:
        """Tell what was collected."""
        for (key, loss, why), count in self._lost.items():
            self._tell(CopiesLost(key, loss, why, count))
        self._lost.clear()
