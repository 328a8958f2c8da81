"""May a request go on, and what did it use? What both ways that a request can take share: limits, headers, metrics."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from gateway.telemetry.metrics import Metrics
from gateway.traffic.keys import Key
from gateway.traffic.limits.contract import Granted, Refused, Reservation, Store, Unknown, Verdict
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.headers import limit_error, rate_headers
from gateway.traffic.limits.limit import Account
from gateway.wire import errors

UNSAID: Final = 1024
"""Tokens of an answer that are reserved where the request sets no limit to it. What it uses beyond that counts, too."""


class Counted:
    """A request that was let in. ``headers`` go with its answer; `settle` has to be called when it is over."""

    __slots__ = ("_key", "_metrics", "_reservation", "headers")

    def __init__(self, granted: Granted, key: str, metrics: Metrics) -> None:
        self.headers = rate_headers(granted)
        self._reservation: Reservation = granted.reservation
        self._key = key
        self._metrics = metrics

    def settle(self, used: int) -> None:
        """It is over, and has used this many tokens. To be called once."""
        self._reservation.settle(used)
        self._metrics.key_used(self._key, used)


class Tab:
    """What one request has of its key's limits, whoever tries to answer it: it is let in once, and settled once."""

    __slots__ = ("_counted", "_used")

    def __init__(self) -> None:
        self._counted: Counted | None = None
        self._used = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """What goes with its answer."""
        return self._counted.headers if self._counted is not None else {}

    @property
    def entered(self) -> bool:
        """Whether it was let in, and anything limits it."""
        return self._counted is not None

    def take(self, counted: Counted) -> None:
        """It was let in."""
        self._counted = counted

    async def enter(self, limiter: "Limiter", key: Key, model: str, tokens: int) -> None:
        """Have it let in, if it wasn't before.

        Raises:
            ApiError: 429 or 503, see `Limiter.enter`.
        """
        if self._counted is None:
            self._counted = await limiter.enter(key, model, tokens)

    def settle(self, used: int) -> None:
        """Somebody has answered it, or has tried to, and this has used so many tokens."""
        self._used += used

    def close(self) -> None:
        """It is over. Once is enough, more do no harm."""
        if self._counted is not None:
            self._counted.settle(self._used)
            self._counted = None


Entry = Counted | errors.ApiError
"""A request that was let in, or what is said to its client instead."""


class Limiter:
    """The limits of one gateway process, counted by itself until told otherwise."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.store: Store = LocalStore()

    def let_in(
        self, key: Key, accounts: tuple[Account, ...], tokens: int, entered: Callable[[Entry], None]
    ) -> Entry | None:
        """Let a request in that uses up to so many ``tokens``, or say why not.

        Returns None if that takes a while: then ``entered`` is called with it later, exactly once.
        """
        verdict = self.store.reserve(accounts, tokens, lambda verdict: entered(self._entry(key, verdict)))
        return None if verdict is None else self._entry(key, verdict)

    async def enter(self, key: Key, model: str, tokens: int) -> Counted | None:
        """The same for who can wait; None where nothing is limited.

        Raises:
            ApiError: 429, a limit is reached; 503, nobody can say.
        """
        accounts = key.accounts(model)
        if not accounts:
            return None
        waiting: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()

        def entered(entry: Entry) -> None:
            if not waiting.cancelled():
                waiting.set_result(entry)
            elif isinstance(entry, Counted):
                entry.settle(0)

        entry = self.let_in(key, accounts, tokens, entered) or await waiting
        if isinstance(entry, errors.ApiError):
            raise entry
        return entry

    def _entry(self, key: Key, verdict: Verdict) -> Entry:
        match verdict:
            case Granted():
                self._metrics.key_admitted(key.id)
                return Counted(verdict, key.id, self._metrics)
            case Refused():
                self._metrics.key_refused(key.id, verdict.limited)
                return limit_error(verdict)
            case Unknown():
                self._metrics.key_refused(key.id, "unknown")
                return errors.unavailable(verdict.reason, 1)
