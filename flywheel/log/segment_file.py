"""How does one segment get onto the disk? It is written at places of our choosing, so that one can try again."""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flywheel.log.folder import closed_path, open_path, sync_folder
from flywheel.log.frame import Salt

# Room is reserved ahead. A synced commit that makes a file longer waits for the file system's journal as well: 64
# records of 5 kB on ext4 on a virtual disk take 0.5 ms with it, 2.3 ms without. What is not synced is cheaper, too: 1.1
# µs a record instead of 1.7 µs.
_AHEAD: Final = 16 << 20
_MOST_PIECES: Final = 1024  # IOV_MAX


class SegmentFile:
    """A new segment in a writer's folder, open for appending.

    Args:
        folder: the writer's.
        number: the segment's.
        salt: what its frames are checked with.
        durable: every append waits for the disk, not just for the kernel.

    Attributes:
        size: bytes that count; what lies behind them belongs to an append that failed.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, folder: Path, number: int, salt: Salt, durable: bool) -> None:
        self._folder = folder
        self._durable = durable
        self._number = number
        self._path = open_path(folder, number)
        self._reserved = 0
        self.size = 0
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            self.append([salt.start()])
            if durable:
                sync_folder(folder)
        except OSError:
            self.abandon()
            self._path.unlink(missing_ok=True)
            raise

    @property
    def deleted(self) -> bool:
        """Whether somebody has removed the file that we write into."""
        return os.fstat(self._file).st_nlink == 0

    @property
    def astray(self) -> bool:
        """Whether it isn't where it was: it was removed, or it was moved with its folder."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def append(self, pieces: Sequence[bytes]) -> None:
        """Write ``pieces`` one after the other: all of them, or none that counts.

        Raises:
            OSError: none counts; it can be tried again.
        """
        size = sum(map(len, pieces))
        if self.size + size > self._reserved:
            self._reserve(self.size + size)
        self._write(pieces if len(pieces) <= _MOST_PIECES else [b"".join(pieces)], size)
        if self._durable:
            os.fdatasync(self._file)
        self.size += size

    def close(self) -> None:
        """Nothing is added any more.

        Raises:
            OSError: that can't be noted on the disk. The file is let go all the same.
        """
        try:
            os.ftruncate(self._file, self.size)
            if self._durable:
                os.fsync(self._file)
            self._path.rename(closed_path(self._folder, self._number))
            if self._durable:
                sync_folder(self._folder)
        finally:
            os.close(self._file)

    def abandon(self) -> None:
        """Let the file go as it is, for recovery to look at."""
        with contextlib.suppress(OSError):
            os.close(self._file)

    def _write(self, pieces: Sequence[bytes], size: int) -> None:
        written = os.pwritev(self._file, pieces, self.size)
        if written < size:  # the disk is full, most likely: then the next call says so
            rest = memoryview(b"".join(pieces))
            while written < size:
                written += os.pwrite(self._file, rest[written:], self.size + written)

    def _reserve(self, size: int) -> None:
        """Have room for ``size`` bytes, and for what comes after."""
        try:
            os.posix_fallocate(self._file, self._reserved, size + _AHEAD - self._reserved)
            self._reserved = size + _AHEAD
        except OSError:  # there isn't that much, or the file system can't: then it grows as it is written
            self._reserved = sys.maxsize
