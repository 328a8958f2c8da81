"""How often do two models agree, as far as is known by now? A share, with bounds that hold at every moment."""

from math import exp, lgamma, log
from typing import Final

_HALF: Final = 0.5  # Jeffreys' prior: as tight as any where nearly all or hardly any agree


class Agreement:
    """Counts pairs of answers, and bounds the share that agrees.

    The bounds are a confidence sequence: the true share lies within all of them together, forever, but for a chance of
    alpha. It is the set of shares against which a bet, spread over all other shares by a beta distribution, hasn't won
    1 / alpha (Robbins, Statistical methods related to the law of the iterated logarithm, 1970).
    """

    def __init__(self, agreed: int = 0, differed: int = 0) -> None:
        self.agreed = agreed
        self.differed = differed

    def add(self, agrees: bool) -> None:
        """One more pair."""
        if agrees:
            self.agreed += 1
        else:
            self.differed += 1

    @property
    def share(self) -> float | None:
        """The share that agrees; None without any pair."""
        count = self.agreed + self.differed
        return self.agreed / count if count else None

    def bounds(self, alpha: float = 0.05) -> tuple[float, float]:
        """The lowest and the highest share that isn't refuted at ``alpha``."""
        share = self.share
        if share is None:
            return 0.0, 1.0
        limit = log(1 / alpha)
        low = self._edge(0.0, share, limit) if self.agreed else 0.0
        high = self._edge(1.0, share, limit) if self.differed else 1.0
        return low, high

    def _edge(self, refuted: float, inside: float, limit: float) -> float:
        """Where, between a share that is refuted and one that isn't, the bet reaches ``limit``."""
        for _ in range(50):
            middle = (refuted + inside) / 2
            if self._log_capital(middle) < limit:
                inside = middle
            else:
                refuted = middle
        return inside

    def _log_capital(self, share: float) -> float:
        """What a bet against ``share`` has won."""
        agreed, differed = self.agreed, self.differed
        mixture = _log_beta(agreed + _HALF, differed + _HALF) - _log_beta(_HALF, _HALF)
        tiny = exp(-700)
        return mixture - agreed * log(max(share, tiny)) - differed * log(max(1 - share, tiny))


def _log_beta(one: float, other: float) -> float:
    return lgamma(one) + lgamma(other) - lgamma(one + other)
