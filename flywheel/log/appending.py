"""How does the gateway log a request without waiting, and without ever being stopped by the disk?

`Log` collects what one round of the event loop brings and writes it at once, at the round's end. With ``durability:
os`` that is one system call in the loop itself, into the page cache, where a killed process's data is safe: 1.4 µs a
record of 5 kB in batches of 64, where a thread would cost a switch of context per batch on top. With ``disk`` a thread
writes and syncs, and whatever comes meanwhile is the next commit's group.

When the disk fails, is full, or takes its time, the thread takes over, and tries again until there is room: meanwhile
requests are answered as if nothing was, a bounded backlog waits in memory, and what exceeds it is lost, counted, and
complained about every few seconds.
"""

import asyncio
import contextlib
import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final, Literal, NamedTuple

from flywheel.log.frame import Kind
from flywheel.log.recovery import Recovered
from flywheel.log.segment_writer import Done, Entry, SegmentWriter, entry_size

log = logging.getLogger(__name__)

Durability = Literal["os", "disk"]

_GROUP: Final = 1 << 20  # bytes: a commit takes no more batches than that
_SLOW: Final = 0.05  # seconds: a write in the loop that takes longer is the last one for `_AVOID` seconds
_AVOID: Final = 30.0
_COMPLAIN_EVERY: Final = 5.0
_RETRY: Final = 0.25
_TICK: Final = 1.0


class _Batch:
    """What one round of the loop brought. ``released``: nobody waits for it any more."""

    __slots__ = ("entries", "handed", "released", "size")

    def __init__(self, entries: list[Entry], now: float) -> None:
        self.entries = entries
        self.size = sum(map(entry_size, entries))
        self.handed = now
        self.released = False


class Log:
    """The request log of one gateway process. All methods are for its event loop's thread; none raises, none waits.

    Args:
        folder: the whole log's, shared by the processes of a host.
        durability: ``os``: what is acknowledged survives the process; ``disk``: the machine, too.
        segment_bytes: how large a segment may become.
        segment_seconds: how old one may become, if there is something in it.
        backlog_bytes: what may wait in memory while the disk doesn't take it; what exceeds it is lost.
        patience: seconds that an answer waits for a disk that says nothing.

    Attributes:
        records: written so far, feedback too.
        lost: records that are not, and won't be.
        failures: attempts to write that failed.
        backlog: bytes that wait for the disk now.
        trouble: why the log can't be written at the moment; empty while it can.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durability: Durability = "os",
        segment_bytes: int = 64 << 20,
        segment_seconds: float = 300.0,
        backlog_bytes: int = 64 << 20,
        patience: float = 1.0,
    ) -> None:
        self._folder = folder
        self._writer = SegmentWriter(folder, segment_bytes, segment_seconds, durability == "disk")
        self._header = self._writer.salt.header
        self._in_thread = durability == "disk"
        self._backlog_bytes = backlog_bytes
        self._patience = patience
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: list[Entry] = []
        self._scheduled = False
        self._begun: set[str] = set()
        self._handed: deque[_Batch] = deque()
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._results: deque[_Result] = deque()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._avoid_until = 0.0
        self._complained = -_COMPLAIN_EVERY
        self._complained_lost = 0
        self._relief = False
        self._lost = 0
        self.records = 0
        self.failures = 0
        self.backlog = 0
        self.trouble = ""

    @property
    def lost(self) -> int:
        return self._lost + self._writer.deleted

    @property
    def recovered(self) -> Recovered:
        """What the last process had left undone."""
        return self._writer.recovered

    def start(self) -> None:
        """Recover what the last process left, and be ready to append. Call it in the loop that will append.

        If that fails, `trouble` says why, and it is tried again.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._writer.open(monotonic())
        except OSError as error:
            self._failed(error)
        self._tick_handle = self._loop.call_later(_TICK, self._tick)

    def begin(self, request_id: str, body: bytes) -> None:
        """A request was let in. ``body``: its record as it is now, and for ever if this process is killed."""
        self._begun.add(request_id)
        self._add((Kind.BEGIN, request_id, self._header(Kind.BEGIN, body), body, None))

    def append(self, request_id: str, body: bytes, done: Done | None = None) -> None:
        """A request has ended. ``body``: its record.

        Args:
            request_id: the record's.
            body: encoded.
            done: is called once the record is durable, with True; or with False where the disk doesn't take it now:
                then it waits in the backlog, or is lost. Either way the answer's last byte may go out.
        """
        self._add((Kind.RECORD, request_id, self._header(Kind.RECORD, body), body, done))

    def feedback(self, request_id: str, body: bytes, done: Done | None = None) -> None:
        """Somebody thinks something of an answer. As `append`."""
        self._add((Kind.FEEDBACK, request_id, self._header(Kind.FEEDBACK, body), body, done))

    def close(self) -> None:
        """Write what waits, for a few seconds at most, and close the segment. May block: it is the end."""
        if self._loop is None:
            return
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        if self._pending:
            self._flush()
        if self._thread is not None:
            self._queue.put(None)
            if self.trouble:
                self._stop.set()
            self._thread.join(timeout=5.0)
            self._stop.set()
            self._thread.join(timeout=1.0)
            self._collect()
        self._loop = None
        while self._handed:  # the disk hangs
            self._lose(self._handed.popleft())
        self._writer.close()
        self._complain(math.inf)

    def _add(self, entry: Entry) -> None:
        if self._loop is None:
            self._lose(_Batch([entry], 0.0))
            return
        self._pending.append(entry)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what has come since the last time, or have it written."""
        self._scheduled = False
        entries, self._pending = self._pending, []
        if not entries:  # `close` was quicker
            return
        now = monotonic()
        if self._in_thread or self._handed or now < self._avoid_until:
            self._hand(_Batch(entries, now))
            return
        try:
            self._writer.write(entries, now)
        except OSError as error:
            self._failed(error)
            self._hand(_Batch(entries, now))
            return
        if monotonic() - now > _SLOW:
            self._avoid_until = now + _AVOID
        self._settle(entries)
        if self.trouble:
            self._works_again()

    def _settle(self, entries: Sequence[Entry], released: bool = False) -> None:
        """``entries`` are written: say so to whom still waits."""
        for kind, request_id, _, _, done in entries:
            if kind == Kind.BEGIN:
                continue
            self.records += 1
            if kind == Kind.RECORD:
                self._begun.discard(request_id)
            if done is not None and not released:
                _tell(done, True)

    def _hand(self, batch: _Batch) -> None:
        """Have the thread write ``batch``."""
        if self.backlog + batch.size > self._backlog_bytes:
            self._lose(batch)
            self._complain(batch.handed)
            return
        if self.trouble:
            _release(batch)
        self.backlog += batch.size
        self._handed.append(batch)
        self._queue.put(batch)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
            self._thread.start()

    def _lose(self, batch: _Batch) -> None:
        for kind, request_id, *_ in batch.entries:
            if kind == Kind.BEGIN:
                self._begun.discard(request_id)  # so that its end, if it is lost as well, isn't looked for
                continue
            self._lost += 1
            if kind == Kind.RECORD and request_id in self._begun:  # its beginning is, or will be, written
                self._begun.discard(request_id)
                self._writer.forget(request_id)
        _release(batch)

    def _work(self) -> None:
        """The thread: write what is handed over, in order, until None is."""
        while (batch := self._queue.get()) is not None:
            group, size, last = [batch], batch.size, False
            while size < _GROUP and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    last = True
                    break
                group.append(following)
                size += following.size
            self._write_group(group)
            if last:
                break

    def _write_group(self, group: list[_Batch]) -> None:
        """Write ``group`` as one, however long that takes; in the thread."""
        entries = [entry for batch in group for entry in batch.entries]
        while True:
            try:
                self._writer.write(entries, monotonic())
            except OSError as error:
                self._report(_Result(len(group), error, False))
                if self._stop.wait(_RETRY):
                    self._report(_Result(len(group), error, True))
                    return
            else:
                self._report(_Result(len(group), None, False))
                return

    def _report(self, result: "_Result") -> None:
        """From the thread to the loop, which may have ended: then `close` looks."""
        self._results.append(result)
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        """What the thread has done."""
        while self._results:
            result = self._results.popleft()
            if result.error is not None and not result.given_up:
                self._failed(result.error)
                continue
            for _ in range(result.batches):
                batch = self._handed.popleft()
                self.backlog -= batch.size
                if result.given_up:
                    self._lose(batch)
                else:
                    self._settle(batch.entries, batch.released)
            if self.trouble and not result.given_up:
                self._works_again()

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        self._in_trouble(str(error))

    def _in_trouble(self, why: str) -> None:
        """Nobody waits for the disk any more, until it writes again."""
        self.trouble = why
        for batch in self._handed:
            _release(batch)
        self._complain(monotonic())

    def _works_again(self) -> None:
        self.trouble = ""
        self._relief = True

    def _complain(self, now: float) -> None:
        """Say what is wrong, or that it isn't any more; not too often, however often that changes."""
        if now < self._complained + _COMPLAIN_EVERY:
            return
        if self._relief and not self.trouble:
            self._relief = False
            self._complained_lost = self.lost
            log.warning("The request log is written again; %d records were lost since the start", self.lost)
            return
        if not self.trouble and self.lost <= self._complained_lost:
            return
        self._complained = now
        self._complained_lost = self.lost
        log.error(
            "The request log in %s can't be written as fast as it should (%s): %d bytes wait in memory, %d records are "
            "lost since the start",
            *(self._folder, self.trouble or "it lost something", self.backlog, self.lost),
        )

    def _tick(self) -> None:
        """Once a second: what nobody's request brings about."""
        if self._loop is None:
            return
        now = monotonic()
        if self._handed:
            if not self.trouble and now - self._handed[0].handed > self._patience:
                self._in_trouble("the disk doesn't answer")
        else:
            try:
                self._writer.maintain(now)
            except OSError as error:
                self._failed(error)
            else:
                if self.trouble:
                    self._works_again()
        self._complain(now)
        self._tick_handle = self._loop.call_later(_TICK, self._tick)


class _Result(NamedTuple):
    """What became of the first ``batches`` that were handed over. ``given_up``: they won't be tried again."""

    batches: int
    error: OSError | None
    given_up: bool


def _release(batch: _Batch) -> None:
    """Let go who waits for ``batch``."""
    if batch.released:
        return
    batch.released = True
    for *_, done in batch.entries:
        if done is not None:
            _tell(done, False)


def _tell(done: Done, written: bool) -> None:
    try:
        done(written)
    except Exception:
        log.exception("What was to happen once a record is logged went wrong")
