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
from pathlib import Path
from time import monotonic
from typing import Final, Literal, NamedTuple

from flywheel.log.batch import Batch, Done
from flywheel.log.recovery import Recovered
from flywheel.log.segment_writer import SegmentWriter
from flywheel.record import Feedback, Record

log = logging.getLogger(__name__)

Durability = Literal["os", "disk"]

_GROUP: Final = 1 << 20  # bytes: a commit takes no more batches than that
_SLOW: Final = 0.05  # seconds: a write in the loop that takes longer is the last one for `_AVOID` seconds
_AVOID: Final = 30.0
_COMPLAIN_EVERY: Final = 5.0
_RETRY: Final = 0.25
_TICK: Final = 1.0


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
        self._in_thread = durability == "disk"
        self._backlog_bytes = backlog_bytes
        self._patience = patience
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batch: Batch | None = None
        self._handed: deque[Batch] = deque()
        self._begun: set[str] = set()  # in what is handed over
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
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

    def begin(self, record: Record) -> None:
        """A request was let in. As its record is at the end of the loop's round, it stays if this process is killed."""
        batch = self._batch or self._next_batch()
        batch.beginnings.append(record)

    def append(self, record: Record, done: Done | None = None) -> None:
        """A request has ended; nothing in its ``record`` may change any more.

        Args:
            record: the request's.
            done: is called once the record is durable, with True; or with False where the disk doesn't take it now:
                then it waits in the backlog, or is lost. Either way the answer's last byte may go out.
        """
        batch = self._batch or self._next_batch()
        batch.endings.append(record)
        if done is not None:
            batch.waiting.append(done)
        if self._loop is None:
            self._flush()

    def feedback(self, feedback: Feedback, done: Done | None = None) -> None:
        """Somebody thinks something of an answer. As `append`."""
        batch = self._batch or self._next_batch()
        batch.opinions.append(feedback)
        if done is not None:
            batch.waiting.append(done)
        if self._loop is None:
            self._flush()

    def close(self) -> None:
        """Write what waits, for a few seconds at most, and close the segment. May block: it is the end."""
        if self._loop is None:
            return
        if self._tick_handle is not None:
            self._tick_handle.cancel()
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

    def _next_batch(self) -> Batch:
        """What comes from now on is written at the end of this round of the loop."""
        batch = self._batch = Batch()
        if self._loop is not None:
            self._loop.call_soon(self._flush)
        return batch

    def _flush(self) -> None:
        """Write what has come since the last time, or have it written."""
        batch, self._batch = self._batch, None
        if batch is None:  # `close` was quicker
            return
        batch.put_together(self._writer.salt)
        now = monotonic()
        if self._loop is None:
            self._lose(batch)
            return
        if self._in_thread or self._handed or now < self._avoid_until:
            self._hand(batch, now)
            return
        try:
            self._writer.write((batch,), now)
        except OSError as error:
            self._failed(error)
            self._hand(batch, now)
            return
        if monotonic() - now > _SLOW:
            self._avoid_until = now + _AVOID
        self._settle(batch)
        if self.trouble:
            self._works_again()

    def _settle(self, batch: Batch) -> None:
        """``batch`` is written: say so to whom still waits."""
        self.records += batch.records
        batch.tell(True)

    def _hand(self, batch: Batch, now: float) -> None:
        """Have the thread write ``batch``."""
        batch.handed, batch.size = now, sum(map(len, batch.pieces))
        if self.backlog + batch.size > self._backlog_bytes:
            self._lose(batch)
            self._complain(now)
            return
        if self.trouble:
            batch.tell(False)
        self.backlog += batch.size
        self._begun.update(batch.begun)
        self._handed.append(batch)
        self._queue.put(batch)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
            self._thread.start()

    def _lose(self, batch: Batch) -> None:
        self._lost += batch.records
        for request_id in batch.ended:
            if request_id in self._begun or self._writer.has_begun(request_id):  # or will be, and is not lost with it
                self._writer.forget(request_id)
        batch.tell(False)

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

    def _write_group(self, group: list[Batch]) -> None:
        """Write ``group`` as one, however long that takes; in the thread."""
        while True:
            try:
                self._writer.write(group, monotonic())
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
                self._begun.difference_update(batch.begun)
                if result.given_up:
                    self._lose(batch)
                else:
                    self._settle(batch)
            if self.trouble and not result.given_up:
                self._works_again()

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        self._in_trouble(str(error))

    def _in_trouble(self, why: str) -> None:
        """Nobody waits for the disk any more, until it writes again."""
        self.trouble = why
        for batch in self._handed:
            batch.tell(False)
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
