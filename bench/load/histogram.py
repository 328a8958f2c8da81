"""How are millions of latencies kept in little room? A histogram with buckets of equal relative width.

The design is Gil Tene's HdrHistogram: within each power of two, buckets are linear; so a value is known to a fixed
relative error whatever its size, counts of several histograms add up, and quantiles are read off the counts.
"""

import math
from collections.abc import Iterable, Sequence

import msgspec

_PARTS = 128
RELATIVE_ERROR = 1 / (2 * _PARTS)
"""A quantile is off by at most this share of itself (0.4 %)."""
SMALLEST = 1e-6
"""What is below, in seconds, counts as zero."""
_ZERO = -(10**6)


class Histogram(msgspec.Struct):
    """Counts of values (seconds here, but any unit will do). Mean, least and greatest are exact.

    ``counts`` goes from a bucket's number to how many values it holds; empty buckets aren't there.
    """

    counts: dict[int, int] = {}
    total: int = 0
    sum: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, perhaps several times. What is below zero (clocks can say so) is zero."""
        if times > 0:
            bucket = _bucket(value)
            self.counts[bucket] = self.counts.get(bucket, 0) + times
            self._span(max(value, 0.0), max(value, 0.0), times, max(value, 0.0) * times)

    def add_all(self, values: Sequence[float]) -> None:
        """Count values of 0 or more. This is where a load test's client spends its time: 0.25 µs each."""
        if not values:
            return
        counts, frexp, get = self.counts, math.frexp, self.counts.get
        for value in values:
            if value < SMALLEST:
                bucket = _ZERO
            else:
                mantissa, exponent = frexp(value)
                bucket = exponent * _PARTS + int((mantissa + mantissa - 1) * _PARTS)
            counts[bucket] = get(bucket, 0) + 1
        self._span(min(values), max(values), len(values), sum(values))

    def _span(self, low: float, high: float, count: int, total: float) -> None:
        self.low = min(self.low, low) if self.total else low
        self.high = max(self.high, high)
        self.total += count
        self.sum += total

    def merge(self, others: Iterable["Histogram"]) -> "Histogram":
        """Add what others have counted; it returns this histogram."""
        for other in others:
            for bucket, count in other.counts.items():
                self.counts[bucket] = self.counts.get(bucket, 0) + count
            if other.total:
                self._span(other.low, other.high, other.total, other.sum)
        return self

    @property
    def mean(self) -> float:
        """The mean; not a number for an empty histogram."""
        return self.sum / self.total if self.total else math.nan

    def quantile(self, share: float) -> float:
        """The least value that ``share`` of all values don't pass (nearest rank); not a number when empty."""
        return self.quantiles([share])[0]

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """Several quantiles in one go, ``shares`` in rising order."""
        found, buckets, seen, bucket = [], iter(sorted(self.counts.items())), 0, _ZERO
        for share in shares:
            rank = max(1, math.ceil(share * self.total - 1e-9))
            while seen < rank:
                following = next(buckets, None)
                if following is None:
                    break
                bucket, count = following
                seen += count
            found.append(min(max(_middle(bucket), self.low), self.high) if self.total else math.nan)
        return found


def _bucket(value: float) -> int:
    if value < SMALLEST:
        return _ZERO
    mantissa, exponent = math.frexp(value)  # 0.5 <= mantissa < 1
    return exponent * _PARTS + int((2 * mantissa - 1) * _PARTS)


def _middle(bucket: int) -> float:
    if bucket == _ZERO:
        return 0.0
    exponent, part = divmod(bucket, _PARTS)
    return math.ldexp((1 + (part + 0.5) / _PARTS) / 2, exponent)
