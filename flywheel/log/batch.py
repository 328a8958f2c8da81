"""What is written at once? The frames of what one round of the event loop brings, and who waits for them.

What comes is only noted, and becomes frames at the end of the round, all of it together: to do each of the few steps
for many records in a row takes half as long as to do all of them for each record by itself.
"""

import logging
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final

import msgspec

from flywheel.log.frame import Kind, Salt
from flywheel.record import Feedback, Record, encode

log = logging.getLogger(__name__)

Done = Callable[[bool], None]
"""Is told whether what it waits for was written."""

_ids: Final = attrgetter("request_id")


class Batch:
    """Frames, one behind the other, once they are put together.

    Attributes:
        beginnings: of requests, until then; ``endings``: their records; ``opinions``: feedback.
        waiting: who is told once it is written, or can't be for now.
        pieces: header, body, header, body …
        begun: the requests that begin in it, and the bodies of those frames.
        ended: the requests whose records are in it.
        records: how many are in it, feedback too.
        handed: when somebody else was asked to write it, and how many bytes (``size``) that are.
    """

    __slots__ = (
        "beginnings", "begun", "ended", "endings", "handed", "opinions", "pieces", "records", "size", "told", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.beginnings: list[Record] = []
        self.endings: list[Record] = []
        self.opinions: list[Feedback] = []
        self.waiting: list[Done] = []
        self.pieces: list[bytes] = []
        self.begun: dict[str, bytes] = {}
        self.ended: list[str] = []
        self.records = 0
        self.handed = 0.0
        self.size = 0
        self.told = False

    def put_together(self, salt: Salt) -> None:
        """Make the frames, as what has come is now. Only once."""
        begun = _encoded(self.beginnings)
        self.begun = dict(zip(map(_ids, self.beginnings), begun, strict=True))
        self.ended = list(map(_ids, self.endings))
        self.records = len(self.endings) + len(self.opinions)
        self.pieces = salt.frames(Kind.BEGIN, begun)
        self.pieces += salt.frames(Kind.RECORD, _encoded(self.endings))
        if self.opinions:
            self.pieces += salt.frames(Kind.FEEDBACK, _encoded(self.opinions))
        self.beginnings, self.endings, self.opinions = [], [], []

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


def _encoded(items: Sequence[Record] | Sequence[Feedback]) -> list[bytes]:
    try:
        return list(map(encode, items))
    except Exception:
        log.exception("A record has something in it that can't be written; the least of it is")
        return [_encoded_or_least(item) for item in items]


def _encoded_or_least(item: Record | Feedback) -> bytes:
    try:
        return encode(item)
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        if isinstance(item, Feedback):
            return encode(Feedback(item.version, item.request_id, item.received))
        return encode(Record(item.version, item.request_id, item.received, item.outcome, item.status))
