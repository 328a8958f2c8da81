"""How strong is the evidence that a canary is worse, or that it isn't? Bets that can't be won in the long run if not.

Each class plays against one hypothesis. Its capital begins at 1 and can't be expected to grow while the hypothesis is
true, so that it ever reaches 1 / alpha with a probability of at most alpha, at whatever moments somebody looks (Ville's
inequality; for the method: Shafer, Testing by betting, 2021; Ramdas, Grünwald, Vovk, Shafer, Game-theoretic statistics
and safe anytime-valid inference, 2023). All of them use of a block only which of its outcomes fell to which arm, where
chance alone decides if the arms are equal; nothing is assumed of how outcomes are distributed or how they drift.

A bet needs to know how large the difference is. Nobody knows, so the capital is spread over several sizes at the
beginning, and those that are right grow (the mixture method: Robbins, 1970). Logarithms are natural.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache, lru_cache
from math import comb, exp, log
from statistics import NormalDist
from typing import Final

_TILTS: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Sizes of a shift that bets on ranks are spread over, in standard deviations of a normal distribution."""
_TILT_SHARES: Final = (0.2, 0.2, 0.2, 0.2, 0.2)
_ODDS: Final = (1.4, 2.0, 3.0, 6.0)
"""Sizes of an odds ratio that bets on events are spread over; most on what is commonly feared, twice as many."""
_ODDS_SHARES: Final = (0.15, 0.4, 0.25, 0.2)
_QUANTILE: Final = NormalDist().inv_cdf
_KEPT: Final = 1 << 14  # results of each kind that are remembered: the same few blocks come again and again


class Evidence:
    """A capital of 1 that was spread over several bets by ``shares``.

    Attributes:
        state: the logarithms of what each bet has now: enough to go on from after a restart.
    """

    def __init__(self, shares: Sequence[float], state: Sequence[float] | None) -> None:
        self.state = list(state) if state is not None else [log(share) for share in shares]

    @property
    def log_capital(self) -> float:
        """The logarithm of all capital together."""
        most = max(self.state)
        return most + log(sum(exp(part - most) for part in self.state))

    @property
    def capital(self) -> float:
        """All capital together; beyond e ** 700 it isn't told apart any more."""
        return exp(min(self.log_capital, 700.0))


class RankEvidence(Evidence):
    """Against: canary values, divided by ``ratio``, don't tend to rank above control values of the same block.

    With ``below``, against: they don't tend to rank below. For canaries that are stochastically better than what is
    bet on, capital is expected to shrink.

    Each canary value is ranked among the block's controls and the canaries before it, so that ranks are independent
    and uniform when the arms are equal, however many canaries a block has; with a reference that is used twice, or a
    sliding window in place of one, they would not be. The bet on a rank is the density ratio of two normal
    distributions at its normal score, scaled to a mean of exactly 1 over all ranks.

    Args:
        ratio: what the canary's values may be times the control's.
        below: bet that the canary's values rank lower.
        state: of the evidence that this one goes on from.
    """

    def __init__(self, ratio: float = 1.0, *, below: bool = False, state: Sequence[float] | None = None) -> None:
        super().__init__(_TILT_SHARES, state)
        self._ratio = ratio
        self._below = below

    def add(self, control: Sequence[float], canary: Sequence[float]) -> None:
        """A block's values."""
        pool = sorted(control)
        for value in canary:
            scaled = value / self._ratio
            lower = bisect_left(pool, scaled)
            if pool:
                equal = bisect_right(pool, scaled) - lower
                self._bet(len(pool) - lower - equal if self._below else lower, equal, len(pool) + 1)
            pool.insert(lower, scaled)

    def _bet(self, rank: int, ties: int, count: int) -> None:
        """Win or lose by ``rank`` (0: the best) of ``count``, which it shares with the ``ties`` ranks above."""
        for index, won in enumerate(_log_payoffs(rank, ties, count)):
            self.state[index] += won


@lru_cache(_KEPT)
def _log_payoffs(rank: int, ties: int, count: int) -> tuple[float, ...]:
    """For each tilt, the logarithm of what ``rank`` of ``count`` pays that is shared with the ``ties`` above it."""
    return tuple(log(sum(payoff[rank : rank + ties + 1]) / (ties + 1)) for payoff in _payoffs(count))


@cache
def _payoffs(count: int) -> tuple[tuple[float, ...], ...]:
    """For each tilt, what each of ``count`` ranks pays; the mean is 1."""
    scores = [_QUANTILE((rank + 0.5) / count) for rank in range(count)]
    paid = [[exp(tilt * score) for score in scores] for tilt in _TILTS]
    return tuple(tuple(one * count / sum(row) for one in row) for row in paid)


class EventEvidence(Evidence):
    """Against: the odds of an event are at most ``odds`` times as high for the canary as for the control.

    With ``below``, against: at least ``odds`` times as high. What is bet on is the canary's share of a block's events,
    given how many of the block's requests are canaries and how many events it has: Fisher's noncentral hypergeometric
    distribution. For rare events the odds are the rate.

    Args:
        odds: the ratio of odds that is bet against.
        below: bet that the ratio is lower.
        state: of the evidence that this one goes on from.
    """

    def __init__(self, odds: float = 1.0, *, below: bool = False, state: Sequence[float] | None = None) -> None:
        super().__init__(_ODDS_SHARES, state)
        self._odds = odds
        self._against = [odds / one if below else odds * one for one in _ODDS]

    def add(self, controls: int, canaries: int, control_events: int, canary_events: int) -> None:
        """A block's numbers of requests, and how many of them had the event."""
        events = control_events + canary_events
        if not 0 < events < controls + canaries:
            return
        usual = _log_chance(controls, canaries, events, canary_events, self._odds)
        for index, odds in enumerate(self._against):
            self.state[index] += _log_chance(controls, canaries, events, canary_events, odds) - usual


@cache
def _weights(controls: int, canaries: int, events: int) -> tuple[int, ...]:
    """In how many ways 0, 1, 2… of ``events`` fall to the canaries."""
    return tuple(
        comb(canaries, one) * comb(controls, events - one) if events - one <= controls else 0
        for one in range(min(canaries, events) + 1)
    )


@lru_cache(_KEPT)
def _log_chance(controls: int, canaries: int, events: int, canary_events: int, odds: float) -> float:
    weights = _weights(controls, canaries, events)
    total = sum(weight * odds**one for one, weight in enumerate(weights))
    return log(weights[canary_events] * odds**canary_events / total)


class RateEvidence(Evidence):
    """Against: at least a share ``rate`` of the canary's requests has the event. It needs no control.

    Args:
        rate: the share, above 0 and below 1.
        state: of the evidence that this one goes on from.
    """

    def __init__(self, rate: float, *, state: Sequence[float] | None = None) -> None:
        super().__init__((0.25,) * 4, state)
        self._rates = [rate * part for part in (0.5, 0.25, 0.1, 0.0)]
        self._rate = rate

    def add(self, requests: int, events: int) -> None:
        """So many requests of the canary, and how many of them had the event."""
        for index, rate in enumerate(self._rates):
            lost = events * log(rate / self._rate) if rate else (-1e9 if events else 0.0)
            self.state[index] += lost + (requests - events) * log((1 - rate) / (1 - self._rate))
