"""Which tenants are ahead of others that wait? Seconds of prefill that each was given, in the form of fair queueing.

As in start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): whoever begins to wait starts level with the one
that had least of those that wait already. So a tenant is owed nothing for the time in which it asked for nothing, and
whoever was ahead when it left is still ahead when it comes back at once.
"""


class Turns:
    """What the tenants of a fleet were given."""

    __slots__ = ("_given", "_quantum", "_waiting")

    def __init__(self, quantum: float) -> None:
        """A tenant may get ``quantum`` seconds ahead before others that wait go first."""
        self._quantum = quantum
        self._given: dict[str, float] = {}
        self._waiting: dict[str, int] = {}

    def joined(self, tenant: str) -> None:
        """One more job of a tenant waits."""
        waiting = self._waiting
        if tenant not in waiting:
            self._given[tenant] = max(self._given.get(tenant, 0.0), self.least())
            waiting[tenant] = 0
        waiting[tenant] += 1

    def left(self, tenant: str, given: float = 0.0) -> None:
        """A job no longer waits: it was given so many seconds, or none."""
        self._given[tenant] += given
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            if len(self._given) > 2 * len(self._waiting) + 1024:
                least = self.least()
                self._given = {
                    name: seconds for name, seconds in self._given.items() if name in self._waiting or seconds > least
                }
            if not self._waiting:
                self._given.clear()

    def least(self) -> float:
        """What the tenant was given that got least, of those that wait."""
        return min(map(self._given.__getitem__, self._waiting), default=0.0)

    def ahead(self, tenant: str, least: float) -> int:
        """By how many whole quanta a tenant that waits is ahead of the one that got ``least``."""
        return int((self._given[tenant] - least) / self._quantum)
