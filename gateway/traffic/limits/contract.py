"""How is a limit asked, and what does it answer? The contract of every store, whatever it counts in.

A request *reserves* what it may use up at most, before anything is done for it, and *settles* what it did use when it
is over, whatever its end was. What is reserved counts in full until then, so that no number of requests at once exceeds
a limit; what is settled flows off with time.

Each rate is a token bucket in the form of a meter (ITU-T I.371, the continuous-state leaky bucket of the Generic Cell
Rate Algorithm): one level that rises with what is used, falls at the rate, and must not exceed the amount. Refunds are
what the usual form can't do exactly: a charge may have flowed off in part when it is taken back, and taking it back
whole then lets more through than the rate. So reservations are held beside the level, and only what was used enters it.
In any ``t`` seconds, then, no more is used than ``amount + t · amount / seconds``, in any order of requests and ends.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from gateway.traffic.limits.limit import Account

Limited = Literal["requests", "tokens", "concurrent", "day"]


class Standing(NamedTuple):
    """How an account stands towards one of its rates: what clients see in headers. ``reset`` is in seconds."""

    limit: int
    remaining: int
    reset: float


class Granted(NamedTuple):
    """A request may go on. ``reservation`` has to be settled when it is over."""

    reservation: "Reservation"
    requests: Standing | None
    tokens: Standing | None


class Refused(NamedTuple):
    """A request may not go on, and nothing was reserved.

    Args:
        limited: which limit it is.
        limit, used, asked: the limit's amount, what is used up or held, and what the request would have added.
        retry_after: seconds until it may succeed; infinity if it never can.
    """

    limited: Limited
    limit: int
    used: int
    asked: int
    retry_after: float
    requests: Standing | None = None
    tokens: Standing | None = None


class Unknown(NamedTuple):
    """Nobody can say whether a request may go on: what counts can't be reached, and must not be done without."""

    reason: str


Verdict = Granted | Refused | Unknown
Decided = Callable[[Verdict], None]


class Reservation:
    """What one request holds of each of ``accounts``: a place, and ``tokens``. `settle` gives it back."""

    __slots__ = ("_store", "accounts", "tokens")

    def __init__(self, store: "Settling", accounts: tuple[Account, ...], tokens: int) -> None:
        self._store: Settling | None = store
        self.accounts = accounts
        self.tokens = tokens

    def settle(self, used: int) -> None:
        """The request is over and has used this many tokens, maybe more than reserved. Only the first call counts."""
        if (store := self._store) is not None:
            self._store = None
            store.settle(self, max(0, used))


class Settling(Protocol):
    """Where reservations are settled."""

    def settle(self, reservation: Reservation, used: int) -> None:
        """What `Reservation.settle` does, once."""


class Store(Settling, Protocol):
    """What counts. Everything is called from one thread, that of the event loop."""

    def reserve(self, accounts: tuple[Account, ...], tokens: int, decided: Decided) -> Verdict | None:
        """Reserve one request with this many tokens in all of ``accounts``, or in none.

        Returns the verdict, or None if it takes a while: then ``decided`` is called with it later, exactly once.
        """

    async def leave(self) -> None:
        """Give back what is held, and count no more."""
