"""How do closed segments become rows of the table, each record once, whenever this is interrupted?

The commit that adds a segment's records also says that it did (`flywheel.table`); the segment is deleted only then. Who
is killed before the commit has left files that no version of the table knows; who is killed after it has left segments
that the table has, which are not read again. A writer's newest segment is emptied instead: its number is where the
writer goes on counting, and a number that came twice would be taken for what the table has already.
"""

import datetime
import fcntl
import gc
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final, NamedTuple

import duckdb
import msgspec

from flywheel.columns import FEEDBACK_COLUMNS, RECORD_COLUMNS, Column, day_of, possible_batches
from flywheel.log.folder import Segment, segments, take, writer_folders
from flywheel.log.frame import START_SIZE, Frames, Kind, NotASegmentError
from flywheel.log.recovery import recover
from flywheel.record import Feedback, Record, decode_feedback, decode_record
from flywheel.scratch import connect
from flywheel.table import Part, Table

log = logging.getLogger(__name__)

_BATCH: Final = 400  # rows of an Arrow batch: the quickest to make, see `flywheel.columns`
_CHUNK: Final = 128 << 20  # bytes of segments that one commit takes; there are two at a time in memory

Item = Record | Feedback


class Compacted(NamedTuple):
    """What went into the table. ``unreadable``: frames that could not be decoded; their segments are put aside."""

    segments: int = 0
    records: int = 0
    feedback: int = 0
    bytes: int = 0
    unreadable: int = 0


class BusyError(Exception):
    """Somebody else compacts this log now."""


def records_table(folder: Path) -> Table:
    """The table of a log's records."""
    return Table(folder / "table", RECORD_COLUMNS)


def feedback_table(folder: Path) -> Table:
    """The table of what was thought of them."""
    return Table(folder / "feedback", FEEDBACK_COLUMNS, ("day",))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only one who changes a log's tables.

    Raises:
        BusyError: somebody else is.
        OSError: there is no such log, or it can't be written.
    """
    file = os.open(folder / "table.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BusyError(f"{folder}: another process is at work on the table") from None
    finally:
        os.close(file)


def compact(
    folder: Path,
    *,
    chunk_bytes: int = _CHUNK,
    change: Callable[[Item], None] | None = None,
    progress: Callable[[Compacted], None] | None = None,
) -> Compacted:
    """Bring all closed segments of a log into its tables, those that dead writers left open too.

    Args:
        folder: the log's.
        chunk_bytes: how many bytes of segments a commit takes, at most by one segment more.
        change: what is to be done to a record, or to feedback, before it gets there.
        progress: is told after each commit what has been done so far.

    Raises:
        BusyError: another process does the same.
        OSError, duckdb.Error, deltalake.exceptions.DeltaError: it can't be written. Nothing is lost, it can be tried
            again.
    """
    with alone(folder), _undisturbed(), connect(folder) as database, ThreadPoolExecutor(1) as thread:
        database.execute("SET preserve_insertion_order = false")
        for writer in writer_folders(folder):
            _recover_if_left(writer)
        done = Compacted()
        writing: Future[Compacted] | None = None
        for chunk in _chunks(waiting(folder), chunk_bytes):
            rows = _read(folder, chunk, change or _leave)  # while DuckDB writes the last ones
            if writing is not None:
                done = _added(done, writing.result(), progress)
            writing = thread.submit(_write, folder, rows, database)
        if writing is not None:
            done = _added(done, writing.result(), progress)
        waiting(folder)  # deletes what is in the table now
        return done


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the collector of cycles: of the millions of tuples that come and go here none is in one."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _added(done: Compacted, more: Compacted, progress: Callable[[Compacted], None] | None) -> Compacted:
    done = Compacted(*(a + b for a, b in zip(done, more, strict=True)))
    if progress is not None:
        progress(done)
    return done


def _leave(item: Item) -> None:
    """Nothing is to be done to it."""


def _recover_if_left(writer: Path) -> None:
    place = take(writer)
    if place is not None:
        try:
            recover(writer)
        finally:
            place.release()


def waiting(folder: Path) -> list[Segment]:
    """Closed segments that are not in the table, in each writer's order. What the table has of others is deleted."""
    found: list[Segment] = []
    by_writer = [of_one for writer in writer_folders(folder) if (of_one := segments(writer))]
    done = records_table(folder).done(of_one[0].writer for of_one in by_writer)
    for of_one in by_writer:
        for segment in of_one:
            if not segment.closed:
                break  # what follows has to wait: the table knows only up to which number it has them
            if segment.number > done[segment.writer]:
                found.append(segment)
            elif segment != of_one[-1]:
                segment.path.unlink(missing_ok=True)
            elif segment.path.stat().st_size > START_SIZE:
                os.truncate(segment.path, START_SIZE)
    return found


def _chunks(found: Sequence[Segment], chunk_bytes: int) -> Iterator[list[Segment]]:
    chunk: list[Segment] = []
    size = 0
    for segment in found:
        chunk.append(segment)
        size += segment.path.stat().st_size
        if size >= chunk_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Rows:
    """Rows on their way into a table, by partition."""

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self._columns = columns
        self._waiting: defaultdict[tuple[int, str], list[Item]] = defaultdict(list)
        self._parts: dict[tuple[datetime.date, str], Part] = {}
        self._wrong = 0
        self.count = 0

    def add(self, item: Item) -> None:
        key = (item.received // 86_400_000_000, item.model if isinstance(item, Record) else "")
        rows = self._waiting[key]
        rows.append(item)
        if len(rows) >= _BATCH:
            self._convert(key[1], self._waiting.pop(key))

    def flush(self) -> int:
        """Convert what waits; how many rows, since the last time, have values that no column can have."""
        for key in list(self._waiting):
            self._convert(key[1], self._waiting.pop(key))
        wrong, self._wrong = self._wrong, 0
        return wrong

    def parts(self) -> list[Part]:
        return list(self._parts.values())

    def _convert(self, model: str, rows: list[Item]) -> None:
        """Make a batch of rows of one partition; some, and without those that can't be in it, where there are such."""
        possible = 0
        for batch, some in possible_batches(rows, self._columns):
            first, last = min(row.received for row in some), max(row.received for row in some)
            part = self._parts.get((day_of(first), model)) or Part(day_of(first), model, [], first, last)
            batches = [*part.batches, batch]
            self._parts[part.day, model] = Part(part.day, model, batches, min(part.first, first), max(part.last, last))
            possible += len(some)
        self.count += possible
        self._wrong += len(rows) - possible


class _Read(NamedTuple):
    """What is to be written: rows, and up to which number they have each writer's segments.

    ``news``: the numbers of those whose feedback isn't in its table yet, as it is after an interruption.
    """

    records: _Rows
    feedback: _Rows
    numbers: dict[str, int]
    news: dict[str, int]
    done: Compacted


def _read(folder: Path, chunk: Sequence[Segment], change: Callable[[Item], None]) -> _Read:
    """The rows of some segments."""
    numbers = {segment.writer: segment.number for segment in chunk}
    has_feedback = feedback_table(folder).done(numbers)
    records, feedback = _Rows(RECORD_COLUMNS), _Rows(FEEDBACK_COLUMNS)
    seen: set[tuple[str, int]] = set()
    size = unreadable = 0
    for segment in chunk:
        wrong = 0
        size += segment.path.stat().st_size
        for kind, body in _frames(segment):
            try:
                if kind == Kind.RECORD:
                    record = decode_record(body)
                    name = record.request_id, record.received  # clients may say an id again
                    if name not in seen:  # an error of the device can leave one in two segments
                        seen.add(name)
                        change(record)
                        records.add(record)
                elif kind == Kind.FEEDBACK and segment.number > has_feedback[segment.writer]:
                    opinion = decode_feedback(body)
                    change(opinion)
                    feedback.add(opinion)
            except msgspec.DecodeError:
                wrong += 1
        wrong += records.flush() + feedback.flush()
        if wrong:
            unreadable += wrong
            aside = segment.path.with_suffix(".unreadable")
            log.error("%d frames of a segment can't be read; a copy of it is kept: %s", wrong, aside)
            shutil.copyfile(segment.path, aside)
    news = {writer: number for writer, number in numbers.items() if number > has_feedback[writer]}
    return _Read(
        records, feedback, numbers, news, Compacted(len(chunk), records.count, feedback.count, size, unreadable)
    )


def _frames(segment: Segment) -> Iterator[tuple[int, bytes | memoryview]]:
    """A closed segment's frames. Something else that has its name is one frame that nobody can read."""
    with segment.path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        try:
            yield from Frames(mmap(file.fileno(), 0, access=ACCESS_READ)).bodies()
        except NotASegmentError:
            yield Kind.RECORD, b""


def _write(folder: Path, rows: _Read, database: duckdb.DuckDBPyConnection) -> Compacted:
    """One commit for each table. Feedback goes first: then who has the records has both."""
    if rows.feedback.count:
        feedback_table(folder).add(rows.feedback.parts(), rows.news, database)
    records_table(folder).add(rows.records.parts(), rows.numbers, database)
    return rows.done
