"""How does a rollout survive a restart? A file a model, replaced whole whenever it is written.

One process writes, by a lock that the system lets go of when it ends, however it ends: two servers that were given the
same data folder would remove each other's files.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from gateway.batches.folder import write_whole
from gateway.traffic.rollout.rollout import RolloutPlan, RolloutState
from gateway.wire.rollouts import ChangeShown

_READABLE: Final = 64  # letters of a model's name in that of its file


class Saved(msgspec.Struct):
    """What a file holds: a model's rollout, and what has happened to it, the oldest first."""

    model: str
    plan: RolloutPlan
    state: RolloutState
    history: list[ChangeShown]


_decoder: Final = msgspec.json.Decoder(Saved)


class SavedRollouts:
    """The files of all rollouts.

    Args:
        folder: where they are; it is made, and held until `close`, once there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: weakref.finalize[[int], SavedRollouts] | None = None

    def close(self) -> None:
        """Let others write."""
        if self._held is not None:
            self._held()
            self._held = None

    def path(self, model: str) -> Path:
        """The file of a model, whatever its name is made of."""
        digest = hashlib.blake2b(model.encode(), digest_size=8).hexdigest()
        return self.folder / f"{quote(model, safe='')[:_READABLE]}-{digest}.json"

    def load(self, model: str) -> Saved | None:
        """What has been saved of a model's rollout, None if nothing has.

        Raises:
            OSError: the file can't be read.
            ValueError: it holds something else.
        """
        try:
            data = self.path(model).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error

    def written(self, model: str) -> tuple[int, ...] | None:
        """Something that is another one each time a model's rollout is saved; None if it never was."""
        try:
            found = self.path(model).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def put_aside(self, model: str) -> None:
        """Keep a file that is of no use out of the way, for somebody to look at."""
        path = self.path(model)
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".bad"))

    def write(self, files: Mapping[str, bytes], models: Collection[str]) -> None:
        """Write what `encode` made of some models, and remove all files but those of ``models``.

        Raises:
            OSError: something could not be written, or another process writes there.
        """
        if files:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not self.folder.exists():
            return
        self._hold()
        for model, data in files.items():
            write_whole(self.path(model), data)
        wanted = {self.path(model) for model in models}
        for path in self.folder.glob("*.json"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _hold(self) -> None:
        if self._held is not None:
            return
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno == errno.EWOULDBLOCK:
                raise OSError(errno.EBUSY, "another server keeps its rollouts there", str(self.folder)) from None
            raise
        self._held = weakref.finalize(self, os.close, lock)


def encode(saved: Saved) -> bytes:
    """What belongs in a file."""
    return msgspec.json.encode(saved)
