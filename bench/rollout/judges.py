"""How do others judge a canary? Restatements of judges that look at the same requests as ours.

- *Peeking*: a Mann-Whitney test of all canaries against all controls, looked at again and again at its nominal level.
- *Kayenta's way*: a Mann-Whitney test of the last window of both arms at a fixed interval, as Netflix's and Google's
  Kayenta does (mann-whitney classifier at a confidence of 98 %, one-sided here, and an effect of more than 5 %).
- *Confidence sequences*: a normal mixture confidence sequence for each arm's mean (Howard, Ramdas, McAuliffe, Sekhon,
  Time-uniform, nonparametric, nonasymptotic confidence sequences, 2021, equation 14; asymptotic form by Waudby-Smith,
  Arbour, Sinha, Kennedy, Ramdas, 2021), worse where they don't overlap; that is how TensorZero compares variants.
"""

import math
from bisect import bisect_left, insort
from statistics import NormalDist
from typing import Final, Protocol

_NORMAL: Final = NormalDist()
_EVERY: Final = 20  # canaries between two looks of a test


class Judge(Protocol):
    """Says when a canary's values are higher than the control's."""

    def add(self, canary: bool, value: float) -> bool:
        """A request's value is known; whether the canary is found worse now."""


class Peeking:
    """A Mann-Whitney test of everything, at ``alpha``, after every `_EVERY` canaries."""

    def __init__(self, alpha: float) -> None:
        self._limit = -_NORMAL.inv_cdf(alpha)
        self._control: list[float] = []
        self._canary: list[float] = []

    def add(self, canary: bool, value: float) -> bool:
        insort(self._canary if canary else self._control, value)
        if not canary or len(self._canary) % _EVERY or not self._control:
            return False
        return mann_whitney(self._control, self._canary) > self._limit


class Windows:
    """A Mann-Whitney test of the values since the last one, after every ``size`` canaries, and an effect of 5 %."""

    def __init__(self, alpha: float, size: int = 50) -> None:
        self._limit = -_NORMAL.inv_cdf(alpha)
        self._size = size
        self._control: list[float] = []
        self._canary: list[float] = []

    def add(self, canary: bool, value: float) -> bool:
        insort(self._canary if canary else self._control, value)
        if len(self._canary) < self._size or not self._control:
            return False
        control, of_canary = self._control, self._canary
        self._control, self._canary = [], []
        larger = of_canary[len(of_canary) // 2] > 1.05 * control[len(control) // 2]
        return larger and mann_whitney(control, of_canary) > self._limit


class Sequences:
    """Two asymptotic confidence sequences of means, at ``alpha`` / 2 each; worse where they don't overlap."""

    def __init__(self, alpha: float, tuned: int = 500) -> None:
        self._alpha = alpha / 2
        # Tightest at about so many values: Waudby-Smith et al., appendix B.2.
        self._rho2 = (2 * math.log(1 / self._alpha) + math.log(1 + 2 * math.log(1 / self._alpha))) / tuned
        self._sums = [[0, 0.0, 0.0], [0, 0.0, 0.0]]

    def add(self, canary: bool, value: float) -> bool:
        sums = self._sums[canary]
        sums[0] += 1
        sums[1] += value
        sums[2] += value * value
        if min(one[0] for one in self._sums) < _EVERY:
            return False
        (_, high), (low, _) = map(self._interval, self._sums)
        return low > high

    def _interval(self, sums: list[float]) -> tuple[float, float]:
        count, total, squares = sums
        mean = total / count
        variance = max(squares / count - mean * mean, 1e-12)
        spread = count * self._rho2 + 1
        scale = variance * 2 * spread / (count * count * self._rho2)
        half = math.sqrt(scale * math.log(math.sqrt(spread) / self._alpha))
        return mean - half, mean + half


def mann_whitney(control: list[float], canary: list[float]) -> float:
    """The normal score of the statistic that canaries are larger; both lists are sorted, ties are few."""
    controls, canaries = len(control), len(canary)
    wins = sum(bisect_left(control, value) for value in canary)
    spread = math.sqrt(controls * canaries * (controls + canaries + 1) / 12)
    return (wins - controls * canaries / 2) / spread
