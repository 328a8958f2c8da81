"""What does a simulated canary see? Requests with a daily cycle, of which a share is the canary's and a truth is known.

Times to first token are log-normal. Load swings by 30 % up and down over a day, and with it the median; failures swing
alike. A control may lag: its outcomes are then known later than the canary's.
"""

import math
import random
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

DAY: Final = 86_400.0
_SWING: Final = 0.3


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What the canary really does. ``spread``: the standard deviation of the logarithm of TTFT."""

    name: str
    ttft: float = 1.0
    bad: float = 0.02
    canary_bad: float = 0.02
    spread: float = 0.5
    lag: float = 0.0


class Request(NamedTuple):
    """``known``: when its outcome is, in seconds as all times are."""

    uid: int
    came: float
    canary: bool
    ttft: float
    bad: bool
    known: float


class Traffic:
    """Requests for one rollout.

    Args:
        truth: what the canary does.
        rate: requests/s in the mean of a day.
        seed: of the randomness.
    """

    def __init__(self, truth: Truth, rate: float, seed: int) -> None:
        self._truth = truth
        self._rate = rate
        self._random = random.Random(seed)
        self._now = self._random.uniform(0.0, DAY)
        self._uid = 0
        self.weight = 0.1
        """The canary's share from now on."""

    @property
    def now(self) -> float:
        return self._now

    def __iter__(self) -> Iterator[Request]:
        while True:
            yield self._next()

    def _next(self) -> Request:
        random, truth = self._random, self._truth
        load = 1.0 + _SWING * math.sin(2 * math.pi * self._now / DAY)
        self._now += random.expovariate(self._rate * load)
        self._uid += 1
        canary = random.random() < self.weight
        ttft = 0.3 * load * math.exp(random.gauss(0.0, truth.spread)) * (truth.ttft if canary else 1.0)
        bad = random.random() < (truth.canary_bad if canary else truth.bad) * load
        known = self._now + ttft + (0.0 if canary else truth.lag)
        return Request(self._uid, self._now, canary, ttft, bad, known)
