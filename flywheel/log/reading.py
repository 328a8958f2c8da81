"""What is in the log that isn't in the table yet? Its segments, read while they are written."""

from collections.abc import Iterator
from pathlib import Path

from flywheel.log.folder import Segment, closed_path, segments, writer_folders
from flywheel.log.frame import Frame, Frames


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


def read_frames(log: Path) -> Iterator[Frame]:
    """Every whole frame in the segments of ``log``, writer by writer, in the order in which each wrote them."""
    for segment in all_segments(log):
        data = read_segment(segment)
        if data is not None:
            yield from Frames(data)
