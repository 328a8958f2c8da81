"""Which of a model's workers may have requests, and how much of their share?

Each has a circuit breaker, which opens when it dies or fails requests again and again with no answer in between, and a
slow start when it comes back. Pure: times are arguments, and whoever owns this tells the placer what comes of it. A
breaker is for choosing among several workers: where all are open, all get requests, as if there were none.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from gateway.fleet.upstream.breaker import Breaker

_FAILURES: Final = 3  # in a row
_PAUSE: Final = 1.0  # seconds for which a breaker is open at first; twice as long after each trial that fails
_SLOW_START: Final = 5.0  # seconds until a worker that came back has its full share
_SOON: Final = 0.25  # seconds from one look at a slow start to the next


class Share(NamedTuple):
    """Whether a worker may have requests, and as what share of its speed it counts."""

    allowed: bool
    weight: float


class Health:
    """Of the workers of one model, by their names. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}

    def up(self, name: str, now: float) -> None:
        """A worker takes requests. The first time it has its full share."""
        breaker = self._breakers.get(name)
        if breaker is None:
            self._breakers[name] = Breaker(_FAILURES, _PAUSE, slow_start=_SLOW_START)
        else:
            breaker.returned(now)

    def failed(self, name: str, now: float) -> None:
        """A worker has died, or failed a request by a fault of its own."""
        if name in self._breakers:
            self._breakers[name].failed(now)

    def answered(self, name: str, now: float) -> bool:
        """A worker has answered a request; whether shares are others now."""
        return name in self._breakers and self._breakers[name].succeeded(now)

    def given_up(self, name: str) -> None:
        """A request that a worker had says nothing about it: its client left, or the worker is going."""
        if name in self._breakers:
            self._breakers[name].abandoned()

    def sent(self, name: str) -> bool:
        """A worker gets a request; whether shares are others now."""
        breaker = self._breakers.get(name)
        if breaker is None or not breaker.tripped:
            return False
        breaker.began()
        return True

    def forget(self, name: str) -> None:
        """A worker won't come back."""
        self._breakers.pop(name, None)

    def shares(self, ready: Collection[str], now: float) -> dict[str, Share]:
        """What each of the workers that are there gets. The fastest of those allowed counts in full."""
        breakers = {name: self._breakers[name] for name in ready}
        allowed = {name for name, breaker in breakers.items() if breaker.allows(now)} or set(ready)
        most = max((breakers[name].weight(now) for name in allowed), default=1.0)
        return {
            name: Share(name in allowed, min(1.0, breaker.weight(now) / most)) for name, breaker in breakers.items()
        }

    def next_look(self, now: float) -> float | None:
        """In how many seconds shares change although nothing happens; None: not before something does."""
        breakers = self._breakers.values()
        waits = [breaker.opens_in(now) for breaker in breakers if breaker.state(now) == "open"]
        if any(breaker.weight(now) < 1 for breaker in breakers):
            waits.append(_SOON)
        return min(waits, default=None)
