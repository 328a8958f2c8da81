"""Who may write to the data folder, and how does what is written there survive a crash?

One process holds the folder, by a lock that the system lets go of when the process ends, however it ends. A small file
is replaced whole: written beside its old self, flushed to the disk, renamed over it.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 4
PART: Final = ".part"  # what is still being written; a leftover of a crash where it is found at the start


class FolderUnavailable(Exception):
    """The data folder can't be used; the message says why, for operators and clients."""


class DataFolder:
    """The data folder, held by this process until `close`.

    Raises:
        FolderUnavailable: another process holds it, or it can't be created or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "files"
        self.batches = path / "batches"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FolderUnavailable(f"the data folder {path} can't be used: {reason(error)}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.files.mkdir(mode=0o700, exist_ok=True)
            self.batches.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            os.close(self._lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES) and error.filename is None:
                raise FolderUnavailable(f"the data folder {path} is in use by another process") from error
            raise FolderUnavailable(f"the data folder {path} can't be used: {reason(error)}") from error

    def close(self) -> None:
        """Let others have the folder."""
        os.close(self._lock)


class Threads:
    """Where this part of the gateway waits for disks, so that the event loop doesn't."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="batches")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns or raises, called in a thread. It should not take long: there are few threads.

        Cancelled, however often, this waits until the function has returned: nobody else may touch its files before.
        """
        future = asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await outlast(future)
            raise

    async def go_through(self, steps: Generator[object]) -> None:
        """Take ``steps`` in threads, one after the other, and rest between two for as long as the one took.

        A step that computes keeps others from computing in Python: it should take a millisecond at most. Cancelled,
        this closes ``steps``: left to the collector, their files would be closed in an order that is nobody's.
        """
        done = object()
        try:
            while True:
                began = time.perf_counter()
                if await self.run(next, steps, done) is done:
                    return
                await asyncio.sleep(time.perf_counter() - began)
        finally:
            steps.close()

    def close(self) -> None:
        """Forget what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def outlast(doing: asyncio.Future[Any]) -> None:
    """Wait until ``doing`` has ended, however it does; a cancel that comes meanwhile is obeyed after that."""
    cancelled: asyncio.CancelledError | None = None
    while not doing.done():
        try:
            await asyncio.wait({doing})
        except asyncio.CancelledError as error:
            cancelled = error
    if not doing.cancelled():
        doing.exception()  # where it is of interest it is asked for again
    if cancelled is not None:
        raise cancelled


def write_whole(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of what ``path`` holds: after a crash it has the one or the other, whole."""
    part = path.with_name(path.name + PART)
    try:
        with open(part, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder survive a crash."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def same_file(source: Path, target: Path) -> None:
    """Give ``source`` a second name, which lives on without the first; a copy where the file system has no links.

    Nothing is done where ``target`` is there already.
    """
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        part = target.with_name(target.name + PART)
        try:
            shutil.copyfile(source, part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, target)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    sync_folder(target.parent)


def reason(error: OSError) -> str:
    """Why the system refused, in its own words."""
    return error.strerror or str(error)
