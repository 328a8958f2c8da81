"""What is in the log that isn't in the table yet? Its segments, read while they are written."""

from collections.abc import Iterator
from pathlib import Path

from flywheel.log.folder import Segment, closed_path, segments, writer_folders
from flywheel.log.frame import START_SIZE, Frame, Frames


def read_segment(segment: Segment) -> bytes | None:
    """A segment's bytes, whether or not it was closed since it was listed; None if it is in the table by now."""
    for path in (segment.path, closed_path(segment.path.parent, segment.number)):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            continue
    return None


def all_segments(log: Path) -> list[Segment]:
    """Those of all writers that ``log`` has had."""
    return [segment for folder in writer_folders(log) for segment in segments(folder)]


def anything_closed(log: Path) -> bool:
    """Whether ``log`` has closed segments with frames. What the table has of a writer's newest is emptied, not gone."""
    return any(
        segment.path.stat().st_size > START_SIZE
        for segment in all_segments(log)
        if segment.closed and segment.path.exists()
    )


def read_frames(log: Path) -> Iterator[Frame]:
    """Every whole frame in the segments of ``log``, writer by writer, in the order in which each wrote them."""
    for segment in all_segments(log):
        data = read_segment(segment)
        if data is not None:
            yield from Frames(data)
