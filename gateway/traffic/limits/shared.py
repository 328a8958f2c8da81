"""What do the gateway processes of one host use up together? A table in a file that all of them have in memory.

It is exact: each decision is made under a lock (``flock``, which the kernel takes from whoever dies), in a few
microseconds. Each process has a place in the table, and a lock of its own on that place for as long as it lives: what a
process held that was killed is freed when somebody would be refused because of it, or when another takes its place.
Since the table is a file, a day's budget is not forgotten by a restart.
"""

import errno
import fcntl
import logging
import mmap
import os
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

from gateway.traffic.limits.contract import Reservation
from gateway.traffic.limits.counting import TableStore
from gateway.traffic.limits.table import COMMON, Table

_VERSION: Final = 1
_ROWS: Final = 16_384
_HOLDERS: Final = 64
_HEADER: Final = 1 + _HOLDERS  # words: the columns in use, and whether each place has been taken
_WIDTH: Final = COMMON + 2 * _HOLDERS
_PATIENCE: Final = 0.25  # seconds to wait for the lock: far more than a busy machine keeps a process from running
_PAUSE: Final = 20e-6
_SIZE: Final = 8 * (_HEADER + _ROWS + _ROWS * _WIDTH)  # bytes; the file has holes where nothing was written

log = logging.getLogger(__name__)


class LimitsError(OSError):
    """The table can't be used; the message says why."""


class _Lock:
    """Whoever is inside is the only one on this host. Not for several threads.

    Who is inside stays a few microseconds there, unless the system has stopped it (a debugger, a frozen container). For
    its sake nobody stops as well: after `_PATIENCE` the others go on without the lock, until they get it again. What
    two of them do within the same microseconds may then be counted once.
    """

    __slots__ = ("_file", "_patience")

    def __init__(self, file: int) -> None:
        self._file = file
        self._patience = _PATIENCE

    def __enter__(self) -> None:
        if self._take():
            self._patience = _PATIENCE
        elif self._patience:
            self._wait()

    def _take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait(self) -> None:
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            time.sleep(_PAUSE)
            if self._take():
                return
        self._patience = 0.0
        log.error("another process has kept the limits' lock for %g s: they are counted without it", _PATIENCE)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


class SharedStore(TableStore):
    """What all processes that name the same ``folder`` use up together.

    Raises:
        LimitsError: the folder can't be used, or so many processes use it already that there is no place left.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = folder
            self._file = os.open(folder / f"table-{_VERSION}", os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._file, _SIZE)
            self._map = mmap.mmap(self._file, _SIZE)
        except OSError as error:
            raise LimitsError(f"limits can't be counted in {folder}: {error.strerror or error}") from error
        self._words = memoryview(self._map).cast("q")
        self._columns = self._words[:1]
        self._taken = self._words[1 : 1 + _HOLDERS]
        self._names = self._words[_HEADER : _HEADER + _ROWS]
        self._locks: dict[int, int] = {}
        lock = _Lock(self._file)
        with lock:
            self._place = self._take_place()
            self._columns[0] = max(self._columns[0], self._place + 1)
            rows = self._words[_HEADER + _ROWS :]
            super().__init__(Table(rows, self._columns, holders=_HOLDERS, holder=self._place), lock, clock)
            self._free(self._place)
            self._taken[self._place] = 1

    def _take_place(self) -> int:
        """The first place whose process lives no more, and that is ours from now on."""
        for place in range(_HOLDERS):
            if self._seize(place):
                return place
        raise LimitsError(errno.EBUSY, f"{_HOLDERS} processes count limits in {self._folder}: there is no place left")

    def _seize(self, place: int) -> bool:
        """Take the lock of a place, if nobody has it."""
        file = self._locks.get(place)
        if file is None:
            file = self._locks[place] = os.open(self._folder / f"place-{place}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _find_row(self, name: str) -> int:
        """The row under the name's fingerprint, found by open addressing."""
        fingerprint = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True) or 1
        for step in range(_ROWS):
            row = (fingerprint + step) % _ROWS
            if self._names[row] == fingerprint:
                return row
            if not self._names[row]:
                self._names[row] = fingerprint
                return row
        raise LimitsError(errno.ENOSPC, f"limits of {_ROWS} accounts are counted in {self._folder}: there is no room")

    def _free_dead(self) -> bool:
        freed = False
        for place in range(self._columns[0]):
            if place != self._place and self._taken[place] and self._seize(place):
                freed |= self._free(place)
                fcntl.flock(self._locks[place], fcntl.LOCK_UN)
        return freed

    def _free(self, place: int) -> bool:
        """Forget what a place holds; returns whether that was anything."""
        self._taken[place] = 0
        freed = False
        for row in range(_ROWS):
            if self._names[row]:
                freed |= self._table.free(row, place)
        return freed

    def settle(self, reservation: Reservation, used: int) -> None:
        """See `contract.Settling`. After `close` nothing is held any more."""
        if self._locks:
            super().settle(reservation, used)

    def close(self) -> None:
        """See `contract.Store`."""
        with self._lock:
            self._free(self._place)
        for view in (self._table.words, self._columns, self._taken, self._names, self._words):
            view.release()
        self._map.close()
        for file in (self._file, *self._locks.values()):
            os.close(file)
        self._locks.clear()
