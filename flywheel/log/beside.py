"""What do others keep of users' words beside the log, and how is it forgotten with them? Files of lines, by owner.

They lie in a folder of the log's, so that whoever forgets a user, or what is too old, finds them. A line is a JSON
object of whoever wrote it. Its ``owner``, in hex, is what stands for the user whose words are in it
(`flywheel.user_keys`), and ``at`` is when that was, in seconds since 1970. Writers and whoever forgets take turns.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

_PART: Final = ".part"


class _Line(msgspec.Struct):
    at: float = 0.0


_line: Final = msgspec.json.Decoder(_Line).decode


def folder(log: Path) -> Path:
    """Where the files of a log are."""
    return log / "beside"


def append(path: Path, lines: list[bytes], limit: int) -> None:
    """Write lines to a file, which takes the place of the one before it when it is full, at ``limit`` bytes.

    Raises:
        OSError: they couldn't be written.
    """
    data = b"".join([line + b"\n" for line in lines])
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(path.parent):
        if path.exists() and path.stat().st_size + len(data) > limit:
            os.replace(path, path.with_suffix(".old.jsonl"))
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(fd, "ab") as file:
            file.write(data)


def forget_owner(log: Path, owner: bytes) -> int:
    """Remove the lines of a user from all files; how many there were.

    Raises:
        OSError: a file can't be written anew.
    """
    mark = b'"owner":"%b"' % owner.hex().encode()  # within a text it would be `\\"owner\\"`
    return _keep(log, lambda line: mark not in line)


def forget_before(log: Path, moment: float) -> int:
    """Remove the lines that are older than ``moment``, in seconds since 1970, from all files; how many there were.

    Raises:
        OSError: a file can't be written anew.
    """

    def has_older(path: Path) -> bool:
        with path.open("rb") as file:  # its first line is its oldest
            return _at(file.readline()) < moment

    return _keep(log, lambda line: _at(line) >= moment, has_older)


def _at(line: bytes) -> float:
    try:
        return _line(line).at
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0.0


def _keep(log: Path, wanted: Callable[[bytes], bool], is_affected: Callable[[Path], bool] = Path.is_file) -> int:
    beside = folder(log)
    if not beside.is_dir():
        return 0
    gone = 0
    with _alone(beside):
        for path in filter(is_affected, sorted(beside.glob("*.jsonl"))):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if wanted(line)]
            if len(kept) < len(lines):
                gone += len(lines) - len(kept)
                _replace(path, b"".join(kept))
    return gone


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + _PART)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _alone(beside: Path) -> Iterator[None]:
    """Be the only one who changes these files."""
    lock = os.open(beside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
