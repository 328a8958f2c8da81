"""How does an answer go to the client while it still comes? Whole events at a time, and never silently cut short."""

from collections.abc import Callable
from typing import Final, Protocol

from gateway.lane.scan import TAIL

_LONGEST_EVENT: Final = 1 << 22  # a longer one goes on in pieces
ENDS: Final = (b"\n\n", b"\r\n\r\n")
"""What an event ends with."""


Seen = Callable[[bytes], None]
"""Told of what a client gets to read."""
Ending = Callable[[], None]
"""Called before the last of an answer is sent."""


class Writer(Protocol):
    """Where bytes for the client go."""

    def write(self, data: bytes) -> None: ...


class Stream:
    """An answer under way. Its bytes are framed anew, for the client's connection, and otherwise left alone.

    Args:
        writer: the client's connection.
        head: status line and headers, sent together with what comes first.
        events: whether these are server-sent events: then what isn't a whole event yet waits for the rest of it, so
            that an error can be put after any of them.
        chunked: whether the client understands chunks; else the end of the connection is the answer's.
        seen: told of what is sent on.
        ending: called before the last of it is.
    """

    __slots__ = ("_chunked", "_ending", "_head", "_last", "_older", "_oldest", "_partial", "_seen", "_writer", "events")

    def __init__(
        self,
        writer: Writer,
        head: bytes,
        *,
        events: bool,
        chunked: bool,
        seen: Seen | None = None,
        ending: Ending | None = None,
    ) -> None:
        self._writer = writer
        self._head = head
        self.events = events
        self._chunked = chunked
        self._seen = seen
        self._ending = ending
        self._partial = b""
        self._oldest = self._older = self._last = b""

    @property
    def begun(self) -> bool:
        """Whether anything has gone to the client."""
        return not self._head

    @property
    def tail(self) -> bytes:
        """The end of what has come: usage and finish reason are there."""
        last = self._last
        if len(last) < TAIL:
            last = self._oldest + self._older + last
        return last[-TAIL:]

    def tail_with(self, data: bytes) -> bytes:
        """The same with ``data``, which is still to be added."""
        more = self._partial + data
        return (more if len(more) >= TAIL else self.tail + more)[-TAIL:]

    def add(self, data: bytes, ended: bool) -> None:
        """More of the answer, or (``ended``) the last of it."""
        if self.events:
            if self._partial:
                data = self._partial + data
                self._partial = b""
            if not ended and not data.endswith(ENDS):
                data = self._hold_back(data)
        if data:
            self._oldest, self._older, self._last = self._older, self._last, data
            if self._seen is not None:
                self._seen(data)
        if ended and self._ending is not None:
            self._ending()
        head = self._head
        if head:
            self._head = b""
        if not self._chunked:
            self._writer.write(head + data)
        elif ended:
            self._writer.write(b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(data), data) if data else head + b"0\r\n\r\n")
        elif data:
            self._writer.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        elif head:
            self._head = head  # nothing whole yet: it is still early enough to begin with something else

    def break_off(self, event: bytes) -> None:
        """The answer won't be complete: say so in an event, and end the stream. Only where it has `events`."""
        self._partial = b""
        self.add(event, ended=True)

    def _hold_back(self, data: bytes) -> bytes:
        """The whole events at the beginning of ``data``; the rest waits."""
        end = max((place + len(mark) for mark in ENDS if (place := data.rfind(mark)) >= 0), default=0)
        if len(data) - end > _LONGEST_EVENT:
            return data
        self._partial = data[end:]
        return data[:end]
