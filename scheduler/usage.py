"""Who has had more than its share lately?

Each tenant's service is added up and forgotten again with a time constant, so that what counts is about the last half
minute. A tenant is *ahead* when it has had clearly more than the mean of all that were served in that time. Others
then go first, and it leaves room for them in steps and in the pool.
"""

from math import exp
from typing import Final

_SECONDS: Final = 30.0  # the time constant
_AHEAD: Final = 1.5  # times the mean
_GONE: Final = 0.02  # of the mean: a tenant with less is forgotten
_SWEEP: Final = 256  # charges from one look for such tenants to the next


class Usage:
    """Each tenant's latest service, in tokens. Memory is bounded by the tenants that are served within minutes."""

    __slots__ = ("_charges", "_had", "_now", "_slack", "_total")

    def __init__(self, slack: float) -> None:
        """Nobody was served yet. ``slack``: tokens above the mean that never count as ahead."""
        self._slack = slack
        # What everybody had, and its sum, as of `_now`.
        self._had: dict[str, float] = {}
        self._total = 0.0
        self._now = 0.0
        self._charges = 0

    def advance(self, now: float) -> None:
        """Time goes on, to ``now`` (seconds); never back."""
        passed = now - self._now
        if passed > 0.05 * _SECONDS:
            keep = exp(-passed / _SECONDS)
            self._had = {tenant: had * keep for tenant, had in self._had.items()}
            self._total *= keep
            self._now = now

    def charge(self, tenant: str, cost: float) -> None:
        """``tenant`` was served ``cost`` tokens."""
        self._had[tenant] = self._had.get(tenant, 0.0) + cost
        self._total += cost
        self._charges += 1
        if not self._charges % _SWEEP:
            self._sweep()

    def ahead(self, tenant: str) -> bool:
        """Whether ``tenant`` has had clearly more than the mean."""
        had = self._had.get(tenant, 0.0)
        return had > self._slack and (had - self._slack) * len(self._had) > _AHEAD * self._total

    def _sweep(self) -> None:
        """Forget who has had next to nothing."""
        least = _GONE * self._total / len(self._had)
        self._had = {tenant: had for tenant, had in self._had.items() if had >= least}
        self._total = sum(self._had.values())
