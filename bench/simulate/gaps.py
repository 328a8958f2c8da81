"""How unequal was the service of tenants that both wanted more?

The measure of fair queueing (Sheng et al., "Fairness in serving large language models", OSDI 2024, section 4): over all
intervals in which two tenants both had requests without a first token, the largest difference of what they were
served. A scheduler without a bound on that lets it grow with the interval.
"""

from itertools import combinations


class ServiceGaps:
    """One worker's service, in tokens (prefill 1, cached and drawn ones as its scheduler charges them)."""

    def __init__(self) -> None:
        """Nobody was served."""
        self.largest = 0.0
        self._service: dict[str, float] = {}
        # How many requests without a first token each tenant has, and which of its backlogs this is.
        self._wanting: dict[str, int] = {}
        self._backlog: dict[str, int] = {}
        self._ranges: dict[tuple[str, str], tuple[int, int, float, float]] = {}

    def want(self, tenant: str) -> None:
        """A request came."""
        wanting = self._wanting.get(tenant, 0)
        if not wanting:
            self._backlog[tenant] = self._backlog.get(tenant, 0) + 1
        self._wanting[tenant] = wanting + 1

    def content(self, tenant: str) -> None:
        """One of its requests has its first token."""
        left = self._wanting[tenant] - 1
        if left:
            self._wanting[tenant] = left
        else:
            del self._wanting[tenant]

    def serve(self, tenant: str, service: float) -> None:
        """A tenant was served."""
        self._service[tenant] = self._service.get(tenant, 0.0) + service

    def look(self) -> None:
        """Compare every two tenants that have a backlog now; to be called often."""
        service, backlog = self._service, self._backlog
        for pair in combinations(sorted(self._wanting), 2):
            one, other = pair
            ahead = service.get(one, 0.0) - service.get(other, 0.0)
            first, second = backlog[one], backlog[other]
            known = self._ranges.get(pair)
            if known is None or known[:2] != (first, second):
                self._ranges[pair] = (first, second, ahead, ahead)
                continue
            low, high = min(known[2], ahead), max(known[3], ahead)
            self._ranges[pair] = (first, second, low, high)
            self.largest = max(self.largest, high - low)
