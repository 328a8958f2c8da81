"""How does a table become a store? Finding rows, asking several at once, settling: in one process or on one host."""

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from gateway.traffic.limits.contract import Decided, Granted, Refused, Reservation, Standing, Verdict
from gateway.traffic.limits.limit import Account
from gateway.traffic.limits.table import MICRO, Table, refusal, standing, standings, tighter


class TableStore(ABC):
    """A store on a `Table`, each of whose operations happens under ``lock``.

    Args:
        clock: seconds since the epoch, the same for all who share the table.
    """

    def __init__(self, table: Table, lock: AbstractContextManager[object], clock: Callable[[], float]) -> None:
        self._table = table
        self._lock = lock
        self._clock = clock
        self._rows: dict[str, int] = {}

    def reserve(self, accounts: tuple[Account, ...], tokens: int, decided: Decided) -> Verdict | None:
        """See `contract.Store`; the verdict always comes at once."""
        with self._lock:
            verdict = self._reserve(accounts, tokens)
            if isinstance(verdict, Refused) and verdict.limited != "requests" and self._free_dead():
                verdict = self._reserve(accounts, tokens)
        return verdict

    def _reserve(self, accounts: tuple[Account, ...], tokens: int) -> Verdict:
        table = self._table
        now = int(self._clock() * MICRO)
        requests: Standing | None
        rate: Standing | None
        uses = []
        for name, limits in accounts:
            row = self._row(name)
            use = table.use(row, limits, now)
            refused = refusal(use, limits, tokens)
            if refused is not None:
                requests, rate = standings(use, limits)
                return refused._replace(requests=requests, tokens=rate)
            uses.append((row, use, limits))
        requests = rate = None
        for row, use, limits in uses:
            table.hold(row, use, tokens)
            requests = tighter(requests, standing(use.requests + MICRO, limits.requests))
            rate = tighter(rate, standing(use.tokens + (use.held + tokens) * MICRO, limits.tokens))
        return Granted(Reservation(self, accounts, tokens), requests, rate)

    def settle(self, reservation: Reservation, used: int) -> None:
        """See `contract.Settling`."""
        table = self._table
        with self._lock:
            now = int(self._clock() * MICRO)
            for name, limits in reservation.accounts:
                row = self._row(name)
                table.settle(row, table.use(row, limits, now), reservation.tokens, used)

    def _row(self, name: str) -> int:
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = self._find_row(name)
        return row

    @abstractmethod
    def _find_row(self, name: str) -> int:
        """The row of an account that was not met before."""

    def _free_dead(self) -> bool:
        """Free what holders that have died hold; returns whether that was anything."""
        return False

    async def leave(self) -> None:
        """See `contract.Store`."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """What `leave` does, without waiting for anything."""


class LocalStore(TableStore):
    """What one process counts by itself, and forgets when it ends."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(Table(_words(0), _words(1, 1)), nullcontext(), clock)

    def _find_row(self, name: str) -> int:
        table, row = self._table, len(self._rows)
        if (row + 1) * table.width > len(table.words):
            grown = _words(max(64, 2 * row) * table.width)
            grown[: len(table.words)] = table.words
            table.words = grown
        return row

    def close(self) -> None:
        """What is held ends with the process."""


def _words(count: int, value: int = 0) -> "memoryview[int]":
    """Memory for so many words."""
    return memoryview(array("q", [value]) * count)
