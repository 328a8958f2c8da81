"""What did a process that was killed leave behind? Torn tails are cut, and requests without an end get one."""

import logging
import os
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

import msgspec

from flywheel.log.folder import Segment, closed_path, segments
from flywheel.log.frame import Frames, Kind, NotASegmentError
from flywheel.record import Head, decode_head

log = logging.getLogger(__name__)


class Recovered(NamedTuple):
    """``aborted`` requests had no end; ``cut`` bytes were torn tails; ``damaged`` bytes are unreadable in between."""

    aborted: int = 0
    cut: int = 0
    damaged: int = 0


def recover(folder: Path, alive: Set[str] = frozenset()) -> Recovered:
    """Close the segments that a writer left open. Whoever calls this has the writer's folder locked.

    It may be interrupted at any point and done again.

    Args:
        folder: the writer's.
        alive: ids of requests that go on, and so aren't given an end.

    Raises:
        OSError: the folder can't be read, or written.
    """
    left = _since_first_open(segments(folder))
    begun: dict[Head, bytes] = {}
    ended: set[Head] = set()
    read: list[tuple[Segment, Frames, int]] = []
    for segment in left:
        data = segment.path.read_bytes()
        try:
            frames = Frames(data)
        except NotASegmentError:
            if segment.closed:
                continue
            log.error("%s is no segment of a request log; it is put aside", segment.path)
            segment.path.rename(segment.path.with_suffix(".broken"))
            continue
        _follow(frames, begun, ended)
        if not segment.closed:
            read.append((segment, frames, len(data.rstrip(b"\0"))))
    if not read:
        return Recovered()
    last, frames, _ = read[-1]
    orphans = [body for head, body in begun.items() if head not in ended and head.request_id not in alive]
    _close(last, frames, orphans)
    for segment, frames, _ in read[:-1]:
        _close(segment, frames, [])
    found = Recovered(
        len(orphans),
        sum(max(0, size - frames.end) for _, frames, size in read),
        sum(frames.damaged for _, frames, _ in read),
    )
    if any(found):
        log.warning(
            "The request log's last writer was cut off: %d requests are recorded as aborted, %d bytes of a torn tail "
            "are cut, %d bytes in between are unreadable (%s)",
            *found,
            folder,
        )
    return found


def _since_first_open(found: list[Segment]) -> list[Segment]:
    """Those that can tell of an end of what begins in an open one."""
    for place, segment in enumerate(found):
        if not segment.closed:
            return found[place:]
    return []


def _follow(frames: Frames, begun: dict[Head, bytes], ended: set[Head]) -> None:
    """Note which requests begin and end in ``frames``. Their ids alone don't say: a client may use one again."""
    for frame in frames:
        if frame.kind not in (Kind.BEGIN, Kind.RECORD):
            continue
        try:
            head = decode_head(frame.body)
        except msgspec.DecodeError:  # whole, and yet not ours: whoever wrote it knows better
            continue
        if frame.kind == Kind.BEGIN:
            begun[head] = frame.body
        else:
            ended.add(head)


def _close(segment: Segment, frames: Frames, orphans: list[bytes]) -> None:
    """Cut the tail of ``segment``, add ``orphans`` as records, and close it."""
    pieces = [] if frames.end else [frames.salt.start()]
    for body in orphans:
        pieces += [frames.salt.header(Kind.RECORD, body), body]
    with segment.path.open("r+b", buffering=0) as file:
        file.truncate(frames.end)
        file.seek(frames.end)
        rest = memoryview(b"".join(pieces))
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    segment.path.rename(closed_path(segment.path.parent, segment.number))
