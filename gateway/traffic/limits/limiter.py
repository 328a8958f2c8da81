"""May a request go on, and what did it use? What both ways that a request can take share: limits, headers, metrics."""

import asyncio
from collections.abc import Callable
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
