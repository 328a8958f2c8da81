"""How do batches of frames become durable? They go into the writer's newest segment, which is followed by others.

No thread and no clock of its own here: `Log` says when, from one thread at a time.
"""

import contextlib
import errno
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flywheel.log.batch import Batch
from flywheel.log.folder import Place, segments, take_first
from flywheel.log.frame import Kind, Salt
from flywheel.log.recovery import Recovered, recover
from flywheel.log.segment_file import SegmentFile

log = logging.getLogger(__name__)

_LOOK_AFTER: Final = 1.0  # seconds between two looks whether the segment is still there
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.EAGAIN)


class SegmentWriter:
    """Appends to the segments of one writer's folder of ``log``, the first that nobody else has.

    Args:
        log: the whole log's folder.
        segment_bytes: a segment is closed when it is larger.
        segment_seconds: … or older.
        durable: every write waits for the disk.

    Attributes:
        salt: what this writer's frames are checked with.
        recovered: what its predecessors in the folder had left undone.
        deleted: records that somebody removed together with the segment that was being written.
    """

    def __init__(self, log: Path, segment_bytes: int, segment_seconds: float, durable: bool) -> None:
        self._log = log
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._durable = durable
        self._place: Place | None = None
        self._file: SegmentFile | None = None
        self._number = 0
        self._records = 0
        self._opened = 0.0
        self._look_at = 0.0
        self._rotate_at = 0.0
        self._forgotten: set[str] = set()
        self._open: dict[str, bytes] = {}
        self.salt = Salt()
        self.recovered = Recovered()
        self.deleted = 0

    def write(self, batches: Sequence[Batch], now: float) -> None:
        """Append ``batches``, at least one: all of them, or none.

        Args:
            batches: in order.
            now: seconds, of a clock that doesn't jump.

        Raises:
            OSError: none was written; it can be tried again, and will find another segment if this one was the cause.
        """
        if now >= self._look_at:
            self._look(now)
        file = self._file or self.open(now)
        pieces = batches[0].pieces if len(batches) == 1 else [piece for batch in batches for piece in batch.pieces]
        try:
            file.append(pieces)
        except OSError as error:
            if error.errno not in _PASSING:
                self._leave(file)
            raise
        for batch in batches:
            self._open.update(batch.begun)
            for request_id in batch.ended:
                self._open.pop(request_id, None)
            self._records += len(batch.ended)
        if self._forgotten:
            self._forget()
        if file.size >= self._segment_bytes or now - self._opened >= self._segment_seconds:
            self._rotate(now)

    def has_begun(self, request_id: str) -> bool:
        """Whether a request's beginning is written, and its end isn't. From any thread."""
        return request_id in self._open

    def forget(self, request_id: str) -> None:
        """A request whose beginning was, or will be, written has no end: its record is lost. From any thread."""
        self._forgotten.add(request_id)

    def open(self, now: float) -> SegmentFile:
        """Have a segment to write to: choose a folder, recover what is in it, and begin a new one.

        Raises:
            OSError: that isn't possible now.
        """
        place = self._place or self._choose()
        try:
            self._file = self._next(place, now)
        except FileNotFoundError:  # the folder is gone
            self._forget_place()
            raise
        return self._file

    def maintain(self, now: float) -> None:
        """What is to be done when nothing is written for a while: close what is old, notice what was removed.

        Raises:
            OSError: the log can't be written.
        """
        self._look(now)
        if self._file is None:
            self.open(now)
        elif self._records and now - self._opened >= self._segment_seconds:
            self._rotate(now)

    def close(self) -> None:
        """Close the segment. Requests without an end are recorded as aborted."""
        file, place = self._file, self._place
        self._file = self._place = None
        if file is not None:
            pieces = []
            for body in self._open.values():
                pieces += [self.salt.header(Kind.RECORD, body), body]
            try:
                if pieces:
                    file.append(pieces)
                file.close()
            except OSError as error:
                log.error("The request log's last segment could not be closed; the next start will: %s", error)
                file.abandon()
        self._open.clear()
        if place is not None:
            place.release()

    def _choose(self) -> Place:
        """Take a folder, and put in order what its last writer left."""
        place = take_first(self._log)
        try:
            found = recover(place.path, self._open.keys())
            self._number = max((segment.number for segment in segments(place.path)), default=0)
        except BaseException:
            place.release()
            raise
        self._place = place
        self.recovered = Recovered(*(a + b for a, b in zip(self.recovered, found, strict=True)))
        return place

    def _next(self, place: Place, now: float) -> SegmentFile:
        """A new segment, which begins with the requests that are under way."""
        self._number += 1  # also if it fails: a number is never used twice
        file = SegmentFile(place.path, self._number, self.salt, self._durable)
        pieces = []
        for body in self._open.values():
            pieces += [self.salt.header(Kind.BEGIN, body), body]
        try:
            if pieces:
                file.append(pieces)
        except OSError:
            file.abandon()
            raise
        self._records = 0
        self._opened = now
        self._look_at = now + _LOOK_AFTER
        return file

    def _rotate(self, now: float) -> None:
        """Go on in a new segment. If there can't be one, then in this one, for another while."""
        old, place = self._file, self._place
        if old is None or place is None or now < self._rotate_at:
            return
        try:
            self._file = self._next(place, now)
        except OSError as error:
            log.error("The request log can't begin a new segment, and goes on in the old one: %s", error)
            self._rotate_at = now + _LOOK_AFTER
            return
        try:
            old.close()
        except OSError as error:
            log.error("A segment of the request log could not be closed; the next start will: %s", error)

    def _leave(self, file: SegmentFile) -> None:
        """The segment can't be written any more: the next write begins another."""
        self._file = None
        with contextlib.suppress(OSError):
            file.close()

    def _look(self, now: float) -> None:
        """Notice that the segment was removed, and what was in it is gone; or that it was moved, and is elsewhere."""
        self._look_at = now + _LOOK_AFTER
        if self._file is None or not self._file.astray:
            return
        if self._file.deleted:
            self.deleted += self._records
        self._file.abandon()
        self._file = None
        self._records = 0
        self._forget_place()

    def _forget(self) -> None:
        for request_id in list(self._forgotten):
            if self._open.pop(request_id, None) is not None:
                self._forgotten.discard(request_id)

    def _forget_place(self) -> None:
        if self._place is not None:
            self._place.release()
            self._place = None
