"""What is written at once? The frames that one round of the event loop brings, and who waits for them."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

Done = Callable[[bool], None]
"""Is told whether what it waits for was written."""


class Batch:
    """Frames, one behind the other.

    Attributes:
        pieces: header, body, header, body …
        begun: the requests that begin in it, and their records as they are now.
        ended: the requests whose records are in it.
        feedback: how many pieces of feedback are.
        waiting: who is told once it is written, or can't be for now.
        handed: when somebody else was asked to write it, and how many bytes (``size``) that are.
    """

    __slots__ = ("begun", "ended", "feedback", "handed", "pieces", "size", "told", "waiting")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.begun: dict[str, bytes] = {}
        self.ended: list[str] = []
        self.feedback = 0
        self.waiting: list[Done] = []
        self.handed = 0.0
        self.size = 0
        self.told = False

    @property
    def records(self) -> int:
        """How many are lost with it, feedback too."""
        return len(self.ended) + self.feedback

    def tell(self, written: bool) -> None:
        """Let go who waits for it; only the first time."""
        if self.told:
            return
        self.told = True
        for done in self.waiting:
            try:
                done(written)
            except Exception:
                log.exception("What was to happen once a record is logged went wrong")
