"""How long will a step take?

A step's time is taken to be linear in what it does:

    t = a + b * tokens + c * context + d * pairs + e * requests

with ``tokens`` the tokens computed, ``context`` the sum of the slices' context lengths (KV that is read), ``pairs`` the
sum over computed tokens of the tokens each attends to, ``requests`` the number of slices. The coefficients are fitted
while serving, by recursive least squares with forgetting (Haykin, Adaptive Filter Theory, ch. 10).

Three things make that robust. Errors count relative to the measured time, so short steps are learnt as well as long
ones, and a stall can't weigh more than one step. Residuals are clipped at a few times their usual size (Huber). What
predicts are the best *non-negative* coefficients, so every prediction can be solved for a number of tokens; what is
learnt stays unbounded, for bounding it as well would push the others up for good.
"""

from math import sqrt
from typing import NamedTuple


class Coefficients(NamedTuple):
    """Seconds per step, per token, per token of context, per (query, key) pair, and per request."""

    step: float
    token: float
    context: float
    pair: float
    request: float


class Work(NamedTuple):
    """What a step does, in the units of `Coefficients`."""

    tokens: int
    context: int
    pairs: int
    requests: int


# Before any step was measured: a CPU's figures. Too slow a guess costs some short steps, too fast a one a late step.
PRIOR = Coefficients(step=2e-3, token=1e-4, context=1e-8, pair=1e-9, request=2e-5)
# How far the truth may be from the prior (standard deviations): from an H200 to a 7B model on two cores.
_SPREAD = (5e-2, 1e-3, 1e-6, 1e-7, 1e-3)
# Variance of the relative error of one measured step.
_NOISE = 0.01
_CLIP = 4.0


class StepTime:
    """Predicts a step's duration in seconds, and learns from each one measured."""

    __slots__ = ("_covariance", "_forgetting", "_learnt", "_residual", "_theta", "observed")

    def __init__(self, prior: Coefficients = PRIOR, forgetting: float = 0.998) -> None:
        """Start from ``prior``; a step measured n steps ago counts ``forgetting`` ** n.

        Raises:
            ValueError: a prior coefficient is negative, or ``forgetting`` isn't in (0, 1].
        """
        if min(prior) < 0 or prior.token == 0:
            raise ValueError(f"{prior}: no coefficient may be negative, and a token must take some time")
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting {forgetting}: expected more than 0, at most 1")
        self._learnt = list(prior)
        self._theta = list(prior)
        self._covariance = [[_SPREAD[i] ** 2 if i == j else 0.0 for j in range(5)] for i in range(5)]
        self._forgetting = forgetting
        self._residual = 1.0
        self.observed = 0

    @property
    def coefficients(self) -> Coefficients:
        """What has been learnt so far."""
        return Coefficients(*self._theta)

    @property
    def prefill_rate(self) -> float:
        """Tokens/s of prefill, in slices of 1,024 tokens at the beginning of a prompt."""
        return 1024 / max(1e-9, self.predict(Work(1024, 1024, 1024 * 1025 // 2, 1)))

    def predict(self, work: Work) -> float:
        """Seconds that a step with this ``work`` will take."""
        step, token, context, pair, request = self._theta
        return step + token * work[0] + context * work[1] + pair * work[2] + request * work[3]

    def slice_seconds(self, start: int, count: int) -> float:
        """Seconds by which a slice of ``count`` tokens after ``start`` computed ones lengthens a step."""
        _, token, context, pair, request = self._theta
        return request + token * count + context * (start + count) + pair * count * (start + 0.5 * (count + 1))

    def tokens_within(self, seconds: float, start: int) -> int:
        """The largest slice after ``start`` computed tokens that lengthens a step by at most ``seconds``."""
        _, token, context, pair, request = self._theta
        left = seconds - request - context * start
        if left <= 0:
            return 0
        linear = token + context + pair * (start + 0.5)
        square = 0.5 * pair
        # The positive root of square * n^2 + linear * n = left, in the form that doesn't cancel when square is tiny.
        bottom = linear + sqrt(linear * linear + 4 * square * left)
        return int(min(2 * left / bottom, 2**31)) if bottom > 0 else 2**31

    def observe(self, work: Work, seconds: float) -> None:
        """Learn that a step with this ``work`` took ``seconds``; steps that did nothing teach nothing."""
        if seconds <= 0 or work.requests == 0:
            return
        theta, covariance = self._learnt, self._covariance
        scale = 1 / seconds
        x0, x1, x2, x3, x4 = scale, work[0] * scale, work[1] * scale, work[2] * scale, work[3] * scale
        gain = [row[0] * x0 + row[1] * x1 + row[2] * x2 + row[3] * x3 + row[4] * x4 for row in covariance]
        spread = gain[0] * x0 + gain[1] * x1 + gain[2] * x2 + gain[3] * x3 + gain[4] * x4 + _NOISE
        residual = 1 - (theta[0] * x0 + theta[1] * x1 + theta[2] * x2 + theta[3] * x3 + theta[4] * x4)
        residual = self._clip(residual)
        step = residual / spread
        self._learnt = [value + g * step for value, g in zip(theta, gain, strict=True)]
        self._shrink(gain, spread)
        self._theta = self._project()
        self.observed += 1

    def _clip(self, residual: float) -> float:
        """Bound a residual by `_CLIP` times the usual size, which follows slowly: a lasting change gets through."""
        usual = self._residual
        bound = _CLIP * usual
        size = min(abs(residual), bound)
        self._residual = max(usual + 0.1 * (size - usual), 0.01)
        return size if residual > 0 else -size

    def _shrink(self, gain: list[float], spread: float) -> None:
        """What is known better after a step is known less well with time, but never less well than at first."""
        keep = 1 / self._forgetting
        inverse = 1 / spread
        covariance = self._covariance
        for mine, row in zip(gain, covariance, strict=True):
            for j in range(5):
                # Symmetric to the last bit: an asymmetry would grow with each step that forgets, without a bound.
                row[j] = (row[j] - mine * gain[j] * inverse) * keep
        for i, limit in enumerate(_SPREAD):
            excess = covariance[i][i] / (limit * limit)
            if excess > 1:
                # Scaling row and column together keeps the matrix positive definite.
                factor = 1 / sqrt(excess)
                for j in range(5):
                    covariance[i][j] *= factor
                    covariance[j][i] *= factor

    def _project(self) -> list[float]:
        """The likeliest coefficients with none below zero: negative ones are pinned, and the others move along."""
        theta = self._learnt
        if min(theta) < 0:
            theta = theta.copy()
            for _ in range(3):
                for i, row in enumerate(self._covariance):
                    if theta[i] < 0:
                        share = theta[i] / row[i]
                        theta = [value - share * r for value, r in zip(theta, row, strict=True)]
                        theta[i] = 0.0
            theta = [max(value, 0.0) for value in theta]
        return theta
