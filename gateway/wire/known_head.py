"""Is this the head that came last on this connection? Then nothing of it needs to be parsed again.

Who keeps a connection says the same head on it again and again, but for the length of the body. So what httptools made
of a head holds for whatever begins with the same bytes, digits of ``content-length`` aside: 0.3 µs instead of 4 to 6
for a parser that calls Python for each header (Python 3.11, Zen 5). Whatever differs in any other byte, comes in
pieces, or has another framing than one ``content-length`` goes to httptools, which decides what HTTP is.
"""

from typing import Final, Self

_LENGTH: Final = b"\r\ncontent-length:"
_DIGITS: Final = 15


class KnownHead:
    """A head to be known again. ``length`` is that of the body which belongs to the head that was seen last."""

    __slots__ = ("_after", "_before", "_begin", "_latest", "_rest", "length")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before, self._after = before, after
        self._begin, self._rest = len(before), len(after)
        self._latest = self._begin + _DIGITS + self._rest
        self.length = 0

    @classmethod
    def learn(cls, message: bytes, length: int) -> Self | None:
        """The head of a whole ``message`` with a body of ``length`` bytes, if it is one that can be known again.

        The message must have been accepted by httptools, and leave the connection open.
        """
        end = len(message) - length
        if message.find(b"\r\n\r\n") != end - 4:
            return None
        head = message[:end]
        low = head.lower()
        if b"transfer-encoding" in low or low.count(b"content-length") != 1 or b"\r\n " in low or b"\r\n\t" in low:
            return None  # framed in another way, or a line that belongs to the one before it
        place = low.find(_LENGTH)
        begin = place + len(_LENGTH) + low.startswith(b" ", place + len(_LENGTH))
        stop = low.find(b"\r", begin)
        digits = low[begin:stop]
        if place < 0 or not digits.isdigit() or len(digits) > _DIGITS or int(digits) != length:
            return None
        return cls(head[:begin], head[stop:])

    def head(self, length: int) -> bytes:
        """The head of a message with a body of ``length`` bytes."""
        return b"%b%d%b" % (self._before, length, self._after)

    def begins(self, data: bytes) -> int:
        """Where the body begins in ``data``, and 0 where ``data`` doesn't begin with this head."""
        if not data.startswith(self._before):
            return 0
        begin = self._begin
        end = data.find(self._after, begin, self._latest)
        if end < 0:
            return 0
        digits = data[begin:end]
        if not digits.isdigit():
            return 0
        self.length = int(digits)
        return end + self._rest
