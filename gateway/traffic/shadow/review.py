"""Where are pairs of answers kept for somebody to look at? The last ones in memory, those that differ in files as well.

A file has a `gateway.wire.shadows.ShadowPair` a line; when it is full, it takes the place of the one before it. What
users have said is in it: only its owner may read it.
"""

import os
import re
from collections import deque
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from gateway.wire.shadows import ShadowPair

DIFFERING: Final = 200
AGREEING: Final = 20
_BYTES: Final = 4 << 20  # of each kind in memory
FILE_SIZE: Final = 16 << 20

_SAFE: Final = re.compile(r"[^A-Za-z0-9-]")
_pair: Final = msgspec.json.Decoder(ShadowPair)


class Lines:
    """The last so many lines, as long as there is room for them in ``size`` bytes."""

    __slots__ = ("_left", "_lines")

    def __init__(self, count: int, size: int = _BYTES) -> None:
        self._lines: deque[bytes] = deque(maxlen=count)
        self._left = size

    def add(self, line: bytes) -> None:
        """The newest one; the oldest ones go."""
        lines = self._lines
        if len(lines) == lines.maxlen:
            self._left += len(lines.popleft())
        lines.append(line)
        self._left -= len(line)
        while self._left < 0:
            self._left += len(lines.popleft())

    def newest(self, count: int) -> list[bytes]:
        """So many of them, the newest first."""
        found = list(self._lines)
        return found[: -count - 1 : -1] if count else []


class Review:
    """The pairs of one shadow of one model.

    Args:
        path: the file for those that differ; None: memory is enough.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.differing = Lines(DIFFERING)
        self.agreeing = Lines(AGREEING)

    def add(self, line: bytes, agrees: bool) -> None:
        """Remember a pair."""
        (self.agreeing if agrees else self.differing).add(line)

    def newest(self, count: int, *, differing: bool) -> list[ShadowPair]:
        """The newest pairs, all of them or those that differ."""
        lines = self.differing.newest(count)
        if differing:
            return [_pair.decode(line) for line in lines]
        found = [_pair.decode(line) for line in lines + self.agreeing.newest(count)]
        return sorted(found, key=lambda pair: -pair.at)[:count]


def file_name(model: str, target: str) -> str:
    """A name for the file of a shadow, which no other has."""
    safe = _SAFE.sub("_", f"{model}--{target}")[:100]
    mark = blake2b(f"{model}\0{target}".encode(), digest_size=4).hexdigest()
    return f"{safe}-{mark}.jsonl"


def append(path: Path, lines: list[bytes], limit: int = FILE_SIZE) -> None:
    """Write lines down; in a thread.

    Raises:
        OSError: they couldn't be written.
    """
    data = b"".join([line + b"\n" for line in lines])
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size + len(data) > limit:
        os.replace(path, path.with_suffix(".old.jsonl"))
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(fd, "ab") as file:
        file.write(data)


def last_lines(path: Path) -> list[bytes]:
    """The last whole pairs in a file; none where there is no file, or it can't be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _BYTES))
            lines = file.read(_BYTES).splitlines()[-DIFFERING:]
    except OSError:
        return []
    return [line for line in lines if _is_pair(line)]


def _is_pair(line: bytes) -> bool:
    try:
        _pair.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True
