"""Which files are kept, and how does one come and go? Content and description side by side in the data folder.

``files/ID`` is the content, ``files/ID.json`` the description. The description is written last and removed first: a
file is there when its description is, and content without one is what a crash left. It says to which API key the file
belongs, by the key's id: for others there is no such file.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gateway.batches.folder import PART, DataFolder, same_file, sync_folder, write_whole
from gateway.wire.files import MAX_EXPIRY, FileObject, ListQuery, Purpose, StoredPurpose

_PREFIX: Final = "file-"
_DESCRIPTION: Final = ".json"
_EXPIRE: Final[frozenset[StoredPurpose]] = frozenset({"batch", "batch_output"})  # after 30 days, as at OpenAI


class _Kept(FileObject, frozen=True, kw_only=True):
    """A file as the disk has it; ``key`` is nothing that clients see."""

    key: str = ""


_decode = msgspec.json.Decoder(_Kept).decode
_encode = msgspec.json.Encoder().encode

log = logging.getLogger(__name__)


def new_id(prefix: str) -> str:
    """An id that sorts behind those that were made before it."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(4)}"


class FileStore:
    """The files of a data folder. Methods that touch the disk block and raise OSError: call them in threads."""

    def __init__(self, folder: DataFolder, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder.files
        self._clock = clock
        self._files: dict[str, _Kept] = {}
        self._load()

    def get(self, id: str, key: str = "") -> FileObject | None:
        """The file called ``id``, if the key has one and it hasn't expired."""
        found = self._files.get(id)
        return None if found is None or found.key != key or self._expired(found) else _shown(found)

    def list(self, query: ListQuery, key: str = "") -> list[FileObject]:
        """What ``query`` asks for of the key's, and one more where there is more."""
        found = []
        for id in sorted(self._files, reverse=query.newest_first):
            file = self.get(id, key) if query.reaches(id) else None
            if file is not None and query.purpose in (None, file.purpose):
                found.append(file)
                if len(found) > query.limit:
                    break
        return found

    def path(self, id: str) -> Path:
        """Where the content of a file is."""
        return self._folder / id

    def begin(self) -> "Upload":
        """A new file, of which nothing is known yet."""
        return Upload(self, self._folder / f"{new_id(_PREFIX)}{PART}")

    def adopt(
        self, id: str, source: Path, filename: str, purpose: StoredPurpose, expires_after: int | None, key: str = ""
    ) -> None:
        """Make the complete file at ``source`` ours, called ``id``. May be done again after a crash."""
        same_file(source, self.path(id))
        self.describe(id, filename, purpose, expires_after, key)

    def describe(
        self, id: str, filename: str, purpose: StoredPurpose, expires_after: int | None, key: str = ""
    ) -> FileObject:
        """Write the description of content that is in its place and on the disk."""
        now = int(self._clock())
        if expires_after is None and purpose in _EXPIRE:
            expires_after = MAX_EXPIRY
        file = _Kept(
            id=id,
            bytes=self.path(id).stat().st_size,
            created_at=now,
            filename=filename,
            purpose=purpose,
            expires_at=None if expires_after is None else now + expires_after,
            key=key,
        )
        write_whole(self._description(id), _encode(file))
        self._files[id] = file
        return _shown(file)

    def delete(self, id: str) -> bool:
        """Remove a file; False where there is none. Whoever reads it can go on."""
        there = id in self._files and not self._expired(self._files[id])
        if id in self._files:
            self._description(id).unlink(missing_ok=True)
            sync_folder(self._folder)
            self._files.pop(id, None)
            self.path(id).unlink(missing_ok=True)
        return there

    def sweep(self) -> None:
        """Remove the files whose time is over."""
        for file in list(self._files.values()):
            if self._expired(file):
                self.delete(file.id)

    def _expired(self, file: FileObject) -> bool:
        return file.expires_at is not None and file.expires_at <= self._clock()

    def _description(self, id: str) -> Path:
        return self._folder / f"{id}{_DESCRIPTION}"

    def _load(self) -> None:
        names = set(os.listdir(self._folder))
        for name in names:
            path = self._folder / name
            if not name.startswith(_PREFIX):
                continue  # not ours
            if name.endswith(_DESCRIPTION):
                id = name.removesuffix(_DESCRIPTION)
                try:
                    if id in names:
                        self._files[id] = _decode(path.read_bytes())
                    else:
                        path.unlink()
                except msgspec.DecodeError as error:
                    log.error("%s can't be read, its file is not shown: %s", path, error)
            elif name.endswith(PART) or f"{name}{_DESCRIPTION}" not in names:
                path.unlink()


class Upload:
    """A file that is being received: `write` what comes, then `commit`, or else `discard`."""

    def __init__(self, store: FileStore, part: Path) -> None:
        self._store = store
        self._part = part
        self._fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        write_all(self._fd, data)

    def commit(self, filename: str, purpose: Purpose, expires_after: int | None, key: str = "") -> FileObject:
        """The file is complete, and is kept."""
        os.fsync(self._fd)
        id = self._part.name.removesuffix(PART)
        os.replace(self._part, self._store.path(id))
        try:
            return self._store.describe(id, filename, purpose, expires_after, key)
        except OSError:
            with contextlib.suppress(OSError):
                self._store.path(id).unlink()
            raise

    def discard(self) -> None:
        """Forget it, unless it was kept."""
        os.close(self._fd)
        with contextlib.suppress(OSError):
            self._part.unlink()


def _shown(file: _Kept) -> FileObject:
    """A file as its owner sees it."""
    return FileObject(**{name: getattr(file, name) for name in FileObject.__struct_fields__})


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, where the system would write less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
