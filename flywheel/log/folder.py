"""Where do segments lie, whose are they, and who may write there?"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

SEGMENTS: Final = "segments"
_CLOSED: Final = ".log"
_OPEN: Final = ".open"
_MOST_WRITERS: Final = 10_000


class Segment(NamedTuple):
    """A file of frames.

    Attributes:
        writer: the id of the writer that it is of.
        number: they count up within a writer, and none is used twice.
        path: where it was when it was listed.
        closed: nothing is added to it any more.
    """

    writer: str
    number: int
    path: Path
    closed: bool


def closed_path(folder: Path, number: int) -> Path:
    """Where a writer's segment lies once it is closed."""
    return folder / f"{number:010}{_CLOSED}"


def open_path(folder: Path, number: int) -> Path:
    """Where a writer's segment lies while it is written."""
    return folder / f"{number:010}{_OPEN}"


def writer_folders(log: Path) -> list[Path]:
    """The folder of each writer that ``log`` has had."""
    try:
        return sorted(path for path in (log / SEGMENTS).iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def segments(folder: Path) -> list[Segment]:
    """A writer's segments, oldest first. None where there is no writer (any more)."""
    try:
        writer = (folder / "id").read_text()
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return list(_named(folder, writer, names))


def _named(folder: Path, writer: str, names: list[str]) -> Iterator[Segment]:
    for name in names:
        stem, dot, suffix = name.partition(".")
        if dot and f".{suffix}" in (_CLOSED, _OPEN) and stem.isdecimal():
            yield Segment(writer, int(stem), folder / name, f".{suffix}" == _CLOSED)


class Place:
    """One writer's folder, locked: the kernel unlocks it when this process ends, however it does.

    Attributes:
        path: the folder.
        writer: an id that no other folder has had, so that the table knows whose segments it has.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self._lock = lock
        self.path = path
        self.writer = _id(path)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._lock)


def take(folder: Path) -> Place | None:
    """A writer's folder, which is made if need be; None while somebody else has it.

    Raises:
        OSError: it can't be made, or written in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Place(folder, lock)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise


def take_first(log: Path) -> Place:
    """The first writer's folder of ``log`` that nobody has: after a restart, what the process had before.

    Raises:
        OSError: none can be made, or written in.
    """
    log.mkdir(mode=0o700, parents=True, exist_ok=True)  # what users say is in it
    for number in range(_MOST_WRITERS):
        place = take(log / SEGMENTS / str(number))
        if place is not None:
            return place
    raise OSError(f"{log}: {_MOST_WRITERS} processes write here already")


def sync_folder(path: Path) -> None:
    """Have the disk keep the names in a folder."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _id(folder: Path) -> str:
    """The id of a writer's folder. Made with a rename, so that there is none or a whole one."""
    known = folder / "id"
    with contextlib.suppress(FileNotFoundError):
        if found := known.read_text():
            return found
    new = folder / "id.new"
    with new.open("w") as file:
        file.write(uuid.uuid4().hex)
        file.flush()
        os.fsync(file.fileno())
    new.rename(known)
    sync_folder(folder)
    return known.read_text()
