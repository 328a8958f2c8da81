"""How is text read that is still arriving, as if it were all there? A buffer, and generators that wait for more."""

import re
from collections.abc import Callable, Generator, Sequence
from typing import Final, TypeVar

_T = TypeVar("_T")

Reading = Generator[None, None, _T]
"""What reads: it yields where it needs more text, and returns what it found."""

_SPACE: Final = re.compile(r"[ \t\r\n]*")


class Reader:
    """The text that is still being read. ``at`` is where, ``ended`` whether no more comes.

    Everything decided here depends on the text alone and not on how it was cut: a method that can't know yet yields,
    and goes on once `feed` has brought more. What lies before ``at`` is forgotten then, but for what begins at
    ``kept``, when that is set. Where ``sent`` is set, what was read from there on is handed to ``emit`` meanwhile.
    """

    __slots__ = ("at", "emit", "ended", "kept", "sent", "text")

    def __init__(self, emit: Callable[[str], None]) -> None:
        self.emit = emit
        self.text = ""
        self.at = 0
        self.kept: int | None = None
        self.sent: int | None = None
        self.ended = False

    def feed(self, text: str) -> None:
        """More text has come."""
        start = self.at if self.kept is None else self.kept
        self.text = self.text[start:] + text
        self.at -= start
        if self.kept is not None:
            self.kept = 0
        if self.sent is not None:
            self.sent -= start

    def pass_on(self) -> None:
        """Emit what was read since ``sent``, if that is set."""
        if self.sent is not None and self.sent < self.at:
            self.emit(self.text[self.sent : self.at])
            self.sent = self.at

    def rewind(self) -> None:
        """Read again from ``kept`` on, if that is set."""
        if self.kept is not None:
            self.at, self.kept = self.kept, None

    def more(self) -> Reading[bool]:
        """Wait for more text. False: there is none."""
        if self.ended:
            return False
        self.pass_on()
        length = len(self.text) - self.at
        while len(self.text) - self.at == length and not self.ended:
            yield
        return len(self.text) - self.at > length

    def peek(self) -> Reading[str]:
        """The next character, or ``""`` at the end."""
        if self.at == len(self.text) and not (yield from self.more()):
            return ""
        return self.text[self.at]

    def skip(self, run: re.Pattern[str]) -> Reading[None]:
        """Pass all that ``run`` matches, a repetition of one class of characters."""
        while True:
            found = run.match(self.text, self.at)
            if found:
                self.at = found.end()
            if self.at < len(self.text) or not (yield from self.more()):
                return

    def skip_space(self) -> Reading[str]:
        """Pass white space; the next character after it, or ``""``."""
        yield from self.skip(_SPACE)
        return (yield from self.peek())

    def ahead(self, wanted: str) -> Reading[bool]:
        """Whether the text goes on with ``wanted``."""
        while True:
            if self.text.startswith(wanted, self.at):
                return True
            if not wanted.startswith(self.text[self.at :]) or not (yield from self.more()):
                return False

    def literal(self, wanted: str) -> Reading[bool]:
        """Pass ``wanted`` if the text goes on with it."""
        found = yield from self.ahead(wanted)
        if found:
            self.at += len(wanted)
        return found

    def until(self, markers: Sequence[str], found: re.Pattern[str], emit: Callable[[str], None]) -> Reading[str]:
        """Hand text to ``emit`` up to one of ``markers`` (``found`` matches them), pass it and return it.

        ``""`` at the end. What could be the beginning of a marker is held back.
        """
        while True:
            match = found.search(self.text, self.at)
            end = match.start() if match else may_begin(self.text, self.at, markers)
            if end > self.at:
                emit(self.text[self.at : end])
                self.at = end
            if match:
                self.at = match.end()
                return match[0]
            if not (yield from self.more()):
                if self.at < len(self.text):
                    emit(self.text[self.at :])
                    self.at = len(self.text)
                return ""


def may_begin(text: str, start: int, markers: Sequence[str]) -> int:
    """The first index from ``start`` on from which ``text`` to its end is the beginning of one of ``markers``."""
    first = len(text)
    for marker in markers:
        index = text.find(marker[0], max(start, len(text) - len(marker) + 1), first)
        while index >= 0:
            if marker.startswith(text[index:]):
                first = index
                break
            index = text.find(marker[0], index + 1, first)
    return first
