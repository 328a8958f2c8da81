"""Where are pairs of answers kept for somebody to look at? The last ones in memory, those that differ in files as well.

A file has a pair a line, sealed or not (`gateway.traffic.shadow.privacy`), and so has memory: who forgets a user makes
the user's pairs unreadable in both. When a file is full, it takes the place of the one before it.
"""

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Final

from flywheel.log import beside
from gateway.traffic.shadow.privacy import Privacy, is_line
from gateway.wire.shadows import ShadowPair

DIFFERING: Final = 200
AGREEING: Final = 20
_BYTES: Final = 4 << 20  # of each kind in memory
FILE_SIZE: Final = 16 << 20

_SAFE: Final = re.compile(r"[^A-Za-z0-9-]")


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
        privacy: opens them.
    """

    def __init__(self, path: Path | None, privacy: Privacy) -> None:
        self.path = path
        self._privacy = privacy
        self.differing = Lines(DIFFERING)
        self.agreeing = Lines(AGREEING)

    def add(self, line: bytes, agrees: bool) -> None:
        """Remember a pair."""
        (self.agreeing if agrees else self.differing).add(line)

    def newest(self, count: int, *, differing: bool) -> list[ShadowPair]:
        """The newest pairs, all of them or those that differ."""
        found = self._open(self.differing.newest(DIFFERING), count)
        if not differing:
            found += self._open(self.agreeing.newest(AGREEING), count)
            found.sort(key=lambda pair: -pair.at)
        return found[:count]

    def _open(self, lines: Iterable[bytes], count: int) -> list[ShadowPair]:
        """The first so many of those that can be read."""
        return list(islice(self._readable(lines), count))

    def _readable(self, lines: Iterable[bytes]) -> Iterator[ShadowPair]:
        for line in lines:
            pair = self._privacy.open(line)
            if pair is not None:
                yield pair


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
    beside.append(path, lines, limit)


def last_lines(path: Path) -> list[bytes]:
    """The last whole pairs in a file; none where there is no file, or it can't be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _BYTES))
            lines = file.read(_BYTES).splitlines()[-DIFFERING:]
    except OSError:
        return []
    return [line for line in lines if is_line(line)]
