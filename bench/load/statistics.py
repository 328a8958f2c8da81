"""How sure is a figure of a run, and do two runs differ by more than chance?

Requests of one run depend on each other: who comes behind a long prompt waits as everybody there does. Intervals that
take them as independent are too narrow, so all intervals here come from a moving-block bootstrap (Künsch 1989, The
Jackknife and the Bootstrap for General Stationary Observations): blocks of consecutive requests are drawn with
replacement. Blocks wrap around the end, so that each request counts the same (Politis & Romano 1992). They are twice
as long as Politis & White (2004, section 3.2, as corrected by Patton, Politis & White 2009) would have them, who want
the variance's smallest squared error: longer ones cover the truth more often. As there are few of them, the
percentiles taken are widened to Student's distribution (Hesterberg 2015, What Teachers Should Know About the
Bootstrap, the expanded percentile interval). Of 300 series of 1,000 autoregressive values (coefficient 0.8) the 95 %
intervals of the median and the p90 covered the truth in 96 and 93 %; with Politis & White's own length in 95 and 92
%, with blocks of one in 53 and 61 %.

What no resampling mends: a run that drifts (warms up, or queues without bound) has no one distribution to estimate.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

CONFIDENCE: Final = 0.95
REPLICATES: Final = 2000
SEGMENTS: Final = 1000
"""Into so many pieces a series is cut at most; blocks begin at a piece. Keeps a million requests cheap."""
FEWEST_BLOCKS: Final = 8
"""With fewer blocks than this a run is too short, for what its requests have to do with each other, to judge by."""
FEWEST_BEYOND: Final = 10
"""A percentile with fewer values beyond it is the whim of those few. Those that come together count as one: the values
are as many as independent ones that would tell as much."""
_NORMAL: Final = NormalDist()
_MANY: Final = 1000.0  # from so many degrees of freedom on Student's distribution is the normal one, to 0.3 %


class Interval(NamedTuple):
    low: float
    high: float


class Estimate(NamedTuple):
    """A figure and what it would have been in other runs of the kind. ``block`` is one block's length in requests (of
    a rate: in seconds), ``blocks`` how many make up the run; ``enough`` says whether one may judge by it."""

    value: float
    replicates: Floats
    block: float
    blocks: float
    enough: bool

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Covers the truth in about ``confidence`` of all cases."""
        if not math.isfinite(self.value):
            return Interval(math.nan, math.nan)
        freedom = max(self.blocks, 2.0) - 1
        t = student_quantile((1 + confidence) / 2, freedom) * math.sqrt((freedom + 1) / freedom)
        tail = _NORMAL.cdf(-t)
        low, high = np.quantile(self.replicates, [tail, 1 - tail])
        return Interval(float(low), float(high))

    def p_value(self) -> float:
        """How easily chance alone puts this figure so far from 0, either way. It is below 1 - c where `interval` (c)
        leaves out 0; beyond what the replicates resolve, their normal approximation counts."""
        if not math.isfinite(self.value):
            return math.nan
        beyond = int(min((self.replicates <= 0).sum(), (self.replicates >= 0).sum()))
        spread = float(self.replicates.std())
        if beyond >= 10 or spread == 0:
            z = -_NORMAL.inv_cdf(min(max(beyond / len(self.replicates), 1e-15), 0.5))
        else:
            z = abs(self.value) / spread
        freedom = max(self.blocks, 2.0) - 1
        return min(1.0, 2 * student_tail(z * math.sqrt(freedom / (freedom + 1)), freedom))


def block_length(series: Floats) -> int:
    """How many consecutive elements a block should hold, from how far the series remembers itself."""
    n = len(series)
    centred = series - series.mean()
    if n < 10 or not centred.any():
        return 1
    spectrum = np.fft.rfft(centred, 2 * n)
    covariance = np.fft.irfft(spectrum * spectrum.conj())[:n] / n
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    most = min(math.ceil(math.sqrt(n)) + run, n - 1)
    small = np.abs(covariance[1 : most + 1] / covariance[0]) < 2 * math.sqrt(math.log10(n) / n)
    quiet = (m for m in range(most - run + 1) if small[m : m + run].all())
    loud = np.flatnonzero(~small)
    reach = min(2 * next(quiet, int(loud[-1]) + 1 if len(loud) else 0), most)
    if reach == 0:
        return 1
    lags = np.arange(1, reach + 1)
    weights = np.minimum(1.0, 2 * (1 - lags / reach)) * covariance[1 : reach + 1]
    slope, level = 2 * float((weights * lags).sum()), float(covariance[0]) + 2 * float(weights.sum())
    if level <= 0:
        return 1
    best: float = (1.5 * (slope / level) ** 2 * n) ** (1 / 3)
    return round(min(max(2 * best, 1.0), 6 * math.sqrt(n), n / 3))


def draw(count: int, block: int, rng: np.random.Generator, replicates: int = REPLICATES) -> NDArray[np.float32]:
    """How often each of ``count`` elements is in each replicate: [replicates, count]."""
    whole, rest = divmod(count, block)
    times = np.zeros((replicates, count), dtype=np.float32)
    rows = np.arange(replicates)[:, None] * count
    for length, blocks in ((block, whole), (rest, 1)):
        if not length:
            continue
        starts = rng.integers(0, count, size=(replicates, blocks)) + rows
        begun = np.bincount(starts.ravel(), minlength=replicates * count).reshape(replicates, count)
        sums = np.cumsum(np.concatenate([begun[:, -length:], begun], axis=1), axis=1, dtype=np.int32)
        times += sums[:, length:] - sums[:, :-length]
    return times


def percentiles(
    values: Floats, owners: Ints, quantiles: Sequence[float], rng: np.random.Generator, replicates: int = REPLICATES
) -> list[Estimate]:
    """The quantiles (0 to 1) of ``values``; ``owners`` numbers the request that each is of, in the order of time."""
    if not len(values):
        return [Estimate(math.nan, np.array([math.nan]), 0, 0, False) for _ in quantiles]
    present = np.bincount(owners) > 0
    count = int(present.sum())
    segments = min(count, SEGMENTS)
    segment = ((np.cumsum(present) - 1) * segments // count)[owners]
    ordered = np.sort(values)
    edges = _edges(ordered)
    cells = segment * len(edges) + np.searchsorted(edges, values)
    table = np.bincount(cells, minlength=segments * len(edges)).reshape(segments, len(edges)).astype(np.float32)
    exact = ordered[_ranks(len(ordered), np.array(quantiles))]
    totals = table.sum(axis=1)
    over = [table[:, np.searchsorted(edges, one) + 1 :].sum(axis=1) / totals for one in exact]
    block = max(block_length(one.astype(np.float64)) for one in over)
    drawn = np.cumsum(draw(segments, block, rng, replicates) @ table, axis=1)
    whole = np.cumsum(table.sum(axis=0))[None]
    blocks, estimates = segments / block, []
    for quantile, value in zip(quantiles, exact.tolist(), strict=True):
        found = edges[_reached(drawn, quantile)] - edges[_reached(whole, quantile)] + value
        below = drawn[:, np.searchsorted(edges, value)] / drawn[:, -1]
        spread = float(below.var())
        independent = min(quantile * (1 - quantile) / spread, len(values)) if spread else len(values)
        beyond = min(quantile, 1 - quantile) * independent
        enough = blocks >= FEWEST_BLOCKS and beyond >= FEWEST_BEYOND
        estimates.append(Estimate(value, found, block * count / segments, blocks, enough))
    return estimates


def share(flags: NDArray[np.bool_], rng: np.random.Generator) -> Estimate:
    """The share (0 to 1) of true ones among requests in the order of time."""
    count = len(flags)
    if not count:
        return Estimate(math.nan, np.array([math.nan]), 0, 0, False)
    segments = min(count, SEGMENTS)
    segment = np.arange(count) * segments // count
    true, of = np.bincount(segment, flags.astype(np.float64)), np.bincount(segment)
    block = block_length(true / of)
    drawn = draw(segments, block, rng).astype(np.float64)
    found = (drawn @ true) / (drawn @ of)
    blocks = segments / block
    return Estimate(float(flags.mean()), found, block * count / segments, blocks, blocks >= FEWEST_BLOCKS)


def rate(times: Floats, weights: Floats, duration: float, rng: np.random.Generator) -> Estimate:
    """What came a second within ``duration`` seconds: ``weights``, at ``times``. Here blocks are stretches of time."""
    if duration <= 0:
        return Estimate(math.nan, np.array([math.nan]), 0, 0, False)
    slots = min(max(len(times), 20), SEGMENTS)
    slot = np.clip((times * (slots / duration)).astype(np.int64), 0, slots - 1)
    amounts = np.bincount(slot, weights.astype(np.float64), minlength=slots).astype(np.float64)
    block = block_length(amounts)
    found = draw(slots, block, rng).astype(np.float64) @ amounts / duration
    blocks = slots / block
    return Estimate(float(weights.sum()) / duration, found, block * duration / slots, blocks, blocks >= FEWEST_BLOCKS)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """``b`` less ``a``, of two runs that have nothing to do with each other."""
    return Estimate(
        b.value - a.value,
        b.replicates - a.replicates,
        max(a.block, b.block),
        min(a.blocks, b.blocks),
        a.enough and b.enough,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values for being asked all at once (Holm 1979): below 0.05 at most one time in 20 for *any* of them, if
    there is no difference at all. NaN ones were not asked."""
    asked = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, worst = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(asked):
        worst = max(worst, min(1.0, p * (len(asked) - rank)))
        adjusted[i] = worst
    return adjusted


def student_tail(t: float, freedom: float) -> float:
    """The chance of more than ``t`` under Student's distribution."""
    if freedom > _MANY:
        return _NORMAL.cdf(-t)
    angles, above = _student(freedom)
    return float(np.interp(math.atan(t / math.sqrt(freedom)), angles, above))


def student_quantile(probability: float, freedom: float) -> float:
    """Where Student's distribution has ``probability`` below it."""
    if freedom > _MANY:
        return _NORMAL.inv_cdf(probability)
    angles, above = _student(freedom)
    return math.tan(float(np.interp(1 - probability, above[::-1], angles[::-1]))) * math.sqrt(freedom)


@lru_cache
def _student(freedom: float) -> tuple[Floats, Floats]:
    """Angles, and the chance of more than each: with t = sqrt(freedom) tan(angle) the density is a power of cosine."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20001)
    density = np.maximum(np.cos(angles), 0.0) ** (freedom - 1)
    above = np.cumsum((density[1:] + density[:-1])[::-1])
    return angles, np.concatenate([(above / above[-1])[::-1], [0.0]])


def _edges(ordered: Floats) -> Floats:
    """Up to 2,000 values that cut all into cells: each where there are few, otherwise finest in the upper tail."""
    if len(ordered) <= 2000:
        return np.unique(ordered)
    places = np.concatenate([np.linspace(0, 0.95, 800), np.linspace(0.95, 0.995, 600), np.linspace(0.995, 1, 600)])
    return np.unique(ordered[_ranks(len(ordered), places)])


def _ranks(count: int, quantiles: Floats) -> Ints:
    """Where quantiles lie among so many ordered values (nearest rank)."""
    return np.clip(np.ceil(quantiles * count - 1e-9).astype(np.int64) - 1, 0, count - 1)


def _reached(cumulative: NDArray[np.float32], quantile: float) -> Ints:
    """In each row, the first cell up to which lies ``quantile`` of all."""
    return np.asarray((cumulative >= quantile * cumulative[:, -1:]).argmax(axis=1), dtype=np.int64)
