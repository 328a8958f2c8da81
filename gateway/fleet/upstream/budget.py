"""How often may something extra be sent? A share of all requests, with a small reserve for quiet times.

Retries and hedges are extra load just when there is too much of it already: bounded to a share of the requests they
can't multiply an outage (as Finagle's retry budgets do it). Pure: times are arguments.
"""


class Budget:
    """A token bucket that each request fills by ``share`` of one.

    Args:
        share: extra sends per request, 0 to 1.
        reserve: what it starts with, and may hold at most before requests have filled it.
        trickle: what comes by itself, in sends per second, so that a quiet gateway isn't stuck at 0.
    """

    __slots__ = ("_held", "_last", "_most", "_share", "_trickle")

    def __init__(self, share: float, reserve: float = 10.0, trickle: float = 0.0) -> None:
        self._share, self._trickle = share, trickle
        self._most = max(reserve, 1.0) * 10
        self._held = reserve
        self._last = 0.0

    def request(self) -> None:
        """A request came."""
        held = self._held + self._share
        self._held = held if held < self._most else self._most

    def take(self, now: float) -> bool:
        """Take one send out, if there is one. ``now`` is monotonic seconds."""
        if self._last:
            self._held = min(self._most, self._held + self._trickle * max(0.0, now - self._last))
        self._last = now
        if self._held < 1:
            return False
        self._held -= 1
        return True
