"""How is what is known of shadows written down, whatever the disk does? Counts in one file, pairs in one for each.

With a request log, pairs lie beside it, because they hold what users said; counts stay where they are.

A disk that takes nothing is said once for each file, and stops nothing: counts are written again later, pairs that are
missing in their files are counted.
"""

import logging
from pathlib import Path

import msgspec

from gateway.batches.folder import reason, write_whole
from gateway.traffic.shadow import review, standing
from gateway.traffic.shadow.privacy import Privacy
from gateway.traffic.shadow.review import Review
from gateway.traffic.shadow.standing import Key, Standing

log = logging.getLogger(__name__)


class Saved:
    """What the data folder has of shadows. What it does may take a while: it is for threads, or before the work begins.

    Args:
        folder: where it is, made once there is something to write; None: nothing is written down.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._failing: set[Path] = set()
        self.unwritten = 0
        """Pairs that couldn't be written."""

    @property
    def _counts(self) -> Path | None:
        return self._folder / "agreement.json" if self._folder is not None else None

    def load(self) -> dict[Key, Standing]:
        """The counts that were saved last; none where there aren't any, or they can't be read."""
        if self._counts is None:
            return {}
        try:
            return standing.decode(self._counts.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("shadows: %s can't be read, so agreement is counted anew: %s", self._counts, error)
            return {}

    def save(self, counts: bytes) -> bool:
        """Write the counts, as `standing.encode` made them; False: they couldn't be written."""
        path = self._counts
        if path is None:
            return True
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, counts)
        except OSError as error:
            self._warn(path, error)
            return False
        self._failing.discard(path)
        return True

    def review(self, model: str, target: str, privacy: Privacy) -> Review:
        """The pairs of a shadow, with those that were kept before, where ``privacy`` has them."""
        folder = privacy.folder or self._folder
        if self._folder is None or folder is None:
            return Review(None, privacy)
        found = Review(folder / review.file_name(model, target), privacy)
        for line in review.last_lines(found.path) if found.path is not None else ():
            found.add(line, False)
        return found

    def append(self, path: Path, lines: list[bytes]) -> None:
        """Write pairs to their file."""
        try:
            review.append(path, lines)
        except OSError as error:
            self.unwritten += len(lines)
            self._warn(path, error)
        else:
            self._failing.discard(path)

    def _warn(self, path: Path, error: OSError) -> None:
        if path not in self._failing:
            self._failing.add(path)
            log.warning("shadows: %s can't be written: %s", path, reason(error))
