"""How does a simulated scheduler learn at compiled speed? As the production one does, to the last bit.

Half of what a step costs a simulation is `StepTime.observe`. This is the same arithmetic in the same order, compiled; a
test holds the two against each other.
"""

from math import sqrt

import numba
import numpy as np

from scheduler import steptime
from scheduler.steptime import PRIOR, Coefficients, StepTime, Work

_SPREAD = np.array(steptime._SPREAD)
_NOISE = steptime._NOISE
_CLIP = steptime._CLIP


class CompiledStepTime(StepTime):
    """A `StepTime` whose `observe` is compiled."""

    __slots__ = ("_state",)

    def __init__(self, prior: Coefficients = PRIOR, forgetting: float = 0.998) -> None:
        """As `StepTime` has it."""
        super().__init__(prior, forgetting)
        # What was learnt (5), the usual residual, the covariance (5 x 5).
        self._state = np.array([*prior, self._residual, *np.diag(_SPREAD**2).ravel()])

    def observe(self, work: Work, seconds: float) -> None:
        """Learn that a step with this ``work`` took ``seconds``."""
        if seconds > 0 and work[3]:
            self._theta = _observe(self._state, work[0], work[1], work[2], work[3], seconds, self._forgetting)
            self.observed += 1


@numba.njit(cache=True)
def _shrink(covariance, gain, spread, forgetting):  # type: ignore[no-untyped-def]
    keep, inverse = 1 / forgetting, 1 / spread
    for i in range(5):
        for j in range(5):
            covariance[i, j] = (covariance[i, j] - gain[i] * gain[j] * inverse) * keep
    for i in range(5):
        excess = covariance[i, i] / (_SPREAD[i] * _SPREAD[i])
        if excess > 1:
            factor = 1 / sqrt(excess)
            for j in range(5):
                covariance[i, j] *= factor
                covariance[j, i] *= factor


@numba.njit(cache=True)
def _project(learnt, covariance):  # type: ignore[no-untyped-def]
    theta = learnt.copy()
    if theta.min() < 0:
        for _ in range(3):
            for i in range(5):
                if theta[i] < 0:
                    share = theta[i] / covariance[i, i]
                    for j in range(5):
                        theta[j] -= share * covariance[i, j]
                    theta[i] = 0.0
        for i in range(5):
            theta[i] = max(theta[i], 0.0)
    return theta[0], theta[1], theta[2], theta[3], theta[4]


@numba.njit("UniTuple(f8, 5)(f8[::1], i8, i8, i8, i8, f8, f8)", cache=True)
def _observe(state, tokens, context, pairs, requests, seconds, forgetting):  # type: ignore[no-untyped-def]
    """One step of recursive least squares on ``state``; the best non-negative coefficients."""
    theta, covariance = state[:5], state[6:].reshape(5, 5)
    scale = 1 / seconds
    x0, x1, x2, x3, x4 = scale, tokens * scale, context * scale, pairs * scale, requests * scale
    gain = np.empty(5)
    for i in range(5):
        row = covariance[i]
        gain[i] = row[0] * x0 + row[1] * x1 + row[2] * x2 + row[3] * x3 + row[4] * x4
    spread = gain[0] * x0 + gain[1] * x1 + gain[2] * x2 + gain[3] * x3 + gain[4] * x4 + _NOISE
    residual = 1 - (theta[0] * x0 + theta[1] * x1 + theta[2] * x2 + theta[3] * x3 + theta[4] * x4)
    usual = state[5]
    size = min(abs(residual), _CLIP * usual)
    state[5] = max(usual + 0.1 * (size - usual), 0.01)
    residual = size if residual > 0 else -size
    step = residual / spread
    for i in range(5):
        theta[i] += gain[i] * step
    _shrink(covariance, gain, spread, forgetting)
    return _project(theta, covariance)
