"""Where does an answer end because the client said so? Stop strings in text that arrives in pieces."""

import re
from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first occurrence of a stop string, and never a part of one.

    For any text, cut into any pieces, what `push` and `flush` return is the text before the leftmost occurrence of any
    of ``stops`` (with ``include``: up to its end; of those that begin at the same place the shortest counts), or the
    whole text if there is none. Text that may yet turn out to be part of a stop string is held back: at most one
    character less than the longest of them.

    ``matched`` is the stop string that was found. After that there is no more text.

    Raises:
        ValueError: one of ``stops`` is empty.
    """

    __slots__ = ("_ended", "_held", "_include", "_pattern", "_stops", "matched")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(sorted(set(stops), key=len))
        self._include = include
        self._pattern = re.compile("|".join(map(re.escape, self._stops))) if stops else None
        self._held = ""
        self._ended = False
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take the next piece; return what may be sent now. Look at `matched` afterwards."""
        if self._pattern is None:
            return text
        if self._ended:
            return ""
        text = self._held + text
        found = self._pattern.search(text)
        begin = self._may_begin(text)
        if found and found.start() <= begin:
            return self._end(text, found)
        self._held = text[begin:]
        return text[:begin]

    def flush(self) -> str:
        """The answer is over: what was held back is no part of a stop string, or ends at one after all."""
        if self._pattern is None or self._ended:
            return ""
        text, self._held = self._held, ""
        found = self._pattern.search(text)
        if found:
            return self._end(text, found)
        self._ended = True
        return text

    def _end(self, text: str, found: "re.Match[str]") -> str:
        self._ended = True
        self._held = ""
        self.matched = found[0]
        return text[: found.end() if self._include else found.start()]

    def _may_begin(self, text: str) -> int:
        """The first index from which ``text`` to its end is the beginning of a longer stop string."""
        first = len(text)
        for stop in self._stops:
            index = text.find(stop[0], max(0, len(text) - len(stop) + 1), first)
            while index >= 0:
                if stop.startswith(text[index:]):
                    first = index
                    break
                index = text.find(stop[0], index + 1, first)
        return first
