"""Records to append, and what a log has: for the log's own tests, and those of what reads it."""

import asyncio
from collections import Counter
from pathlib import Path

from flywheel.log import Log
from flywheel.log.frame import Kind
from flywheel.log.reading import read_frames
from flywheel.record import VERSION, Content, Record, decode_record

RECEIVED = 1_690_000_000_000_000  # 2023-07-22


def record(number: int, **fields: object) -> Record:
    """A record to tell from others by its number."""
    known: dict[str, object] = {"outcome": "ok", "status": 200, "model": "chat", **fields}
    return Record(VERSION, f"req_{number}", RECEIVED + number, **known)  # type: ignore[arg-type]


def with_text(number: int, size: int) -> Record:
    """A record with ``size`` bytes of text."""
    return record(number, content=Content("full", b"x" * size))


async def append(log: Log, one: Record) -> bool:
    """Append a record; whether it was written."""
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    log.append(one, done.set_result)
    return await asyncio.wait_for(done, 20)


def begin(log: Log, one: Record) -> None:
    """Log the beginning of a request."""
    log.begin(one)


def records(folder: Path) -> list[Record]:
    """All records in the segments of a log, whole ones."""
    return [decode_record(frame.body) for frame in read_frames(folder) if frame.kind == Kind.RECORD]


def outcomes(folder: Path) -> dict[str, str]:
    """The outcome of each request in the segments of a log, none of which is there twice."""
    found = records(folder)
    assert not [name for name, count in Counter(one.request_id for one in found).items() if count > 1]
    return {one.request_id: one.outcome for one in found}
