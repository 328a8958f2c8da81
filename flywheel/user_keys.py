"""Who can still read what a user said? Whoever has the user's key; and once that is gone, nobody.

What a user asks and is answered is sealed with AES-256-GCM (NIST SP 800-38D) under a key of that user alone. To erase
the user is to forget the key: from then on the sealed bytes are noise, wherever there are copies of them. The keys are
in one small SQLite file beside the log, which is to be backed up apart from it, and for a short time, if at all. It
knows users by a keyed hash of their names only. SQLite overwrites what it deletes, and its journal, without which a
process that is killed could take all keys with it, is overwritten as well.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from os import urandom
from pathlib import Path
from time import monotonic, time_ns
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT: Final = b"\x01"
_NONCE: Final = 12
_LOOK_AFTER: Final = 1.0  # seconds until a process notices that another one has forgotten a key, or the whole file
_MOST_KNOWN: Final = 10_000
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS secret (one INTEGER PRIMARY KEY CHECK (one = 1), bytes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS keys (user BLOB PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased (user BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased_requests (request BLOB PRIMARY KEY) WITHOUT ROWID;
"""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(dict[str, bytes]).decode


def keys_path(folder: Path) -> Path:
    """Where a log has its users' keys."""
    return folder / "keys.sqlite"


class UserKeys:
    """The keys in ``path``, which is made if need be. For any thread; several processes may have the same file.

    Who deletes the file forgets all users. A new one is begun then: what is sealed under keys that only this process
    has could never be opened.

    Args:
        path: the file.
        durable: a new key is on the disk before anything is sealed under it. Without it, a key survives the process,
            as a record does, but not the machine.

    Raises:
        OSError, sqlite3.Error: the file can't be made, or isn't one of these.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._synchronous = "FULL" if durable else "OFF"
        self._open()

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        place = self._there()
        self._file = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
        for setting in ("secure_delete = ON", f"synchronous = {self._synchronous}", "journal_mode = TRUNCATE"):
            self._file.execute(f"PRAGMA {setting}")
        self._file.executescript(_TABLES)
        self._file.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", [urandom(32)])
        self._secret: bytes = self._file.execute("SELECT bytes FROM secret").fetchone()[0]
        self._known: dict[bytes, AESGCM] = {}
        self._version = self._changes()
        self._look_at = monotonic() + _LOOK_AFTER
        self._place = place

    def _there(self) -> tuple[int, int] | None:
        """Which file it is that is there now."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _changes(self) -> int:
        """Another number once another process has changed something."""
        return int(self._file.execute("PRAGMA data_version").fetchone()[0])

    def _look(self) -> None:
        """Notice what others have done to the file."""
        with self._lock:
            if self._there() != self._place:
                self._file.close()
                self._open()
                return
            version, self._version = self._version, self._changes()
            if version != self._version:
                self._known.clear()
            self._look_at = monotonic() + _LOOK_AFTER

    def hash(self, text: bytes) -> bytes:
        """A keyed hash, of 16 bytes: equal for equal texts, and tells nothing without the file.

        Raises:
            OSError, sqlite3.Error: the file has gone, and can't be made anew.
        """
        if monotonic() >= self._look_at:
            self._look()
        return blake2b(text, digest_size=16, key=self._secret).digest()

    def owner(self, user: str) -> bytes:
        """What stands for a user where the name shall not be: a keyed hash of it, of 16 bytes."""
        return self.hash(b"user:" + user.encode("utf-8", "surrogatepass"))

    def seal(self, user: str, parts: Mapping[str, bytes]) -> bytes:
        """``parts`` so that only the user's key opens them. A new user gets a key.

        Raises:
            sqlite3.Error: there is no place for it.
        """
        owner = self.owner(user)
        nonce = urandom(_NONCE)
        return _FORMAT + nonce + self._key(owner).encrypt(nonce, _encode(parts), owner)

    def unseal(self, user: str, sealed: bytes) -> dict[str, bytes] | None:
        """What was sealed; None where the key is gone, or it is something else."""
        return self.open(self.owner(user), sealed)

    def open(self, owner: bytes, sealed: bytes) -> dict[str, bytes] | None:
        """The same, for who knows only what stands for the user."""
        with self._lock:
            found = self._file.execute("SELECT key FROM keys WHERE user = ?", [owner]).fetchone()
        if found is None or sealed[:1] != _FORMAT:
            return None
        nonce = sealed[1 : 1 + _NONCE]
        try:
            return _decode(AESGCM(found[0]).decrypt(nonce, sealed[1 + _NONCE :], owner))
        except (InvalidTag, ValueError, msgspec.DecodeError):
            return None

    def erase(self, user: str) -> bool:
        """Forget the key, at once; whether there was one. What comes from this user later gets a new one.

        When this returns, the disk has forgotten it as well, as far as it forgets what is overwritten.
        """
        owner = self.owner(user)
        with self._lock:
            self._known.pop(owner, None)
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.execute("PRAGMA journal_mode = PERSIST")
            self._file.execute("BEGIN IMMEDIATE")
            was = self._file.execute("DELETE FROM keys WHERE user = ?", [owner]).rowcount > 0
            self._file.execute("INSERT OR REPLACE INTO erased VALUES (?, ?)", [owner, time_ns() // 1000])
            self._file.execute("COMMIT")
            self._overwrite_journal()
            self._file.execute("PRAGMA journal_mode = TRUNCATE")
            self._file.execute(f"PRAGMA synchronous = {self._synchronous}")
        return was

    def _overwrite_journal(self) -> None:
        """It has the pages as they were, with the key, for whoever had to undo what is done now."""
        self._file.execute("BEGIN IMMEDIATE")  # nobody else writes to it meanwhile
        with open(f"{self._path}-journal", "rb+") as journal:
            size = journal.seek(0, os.SEEK_END)
            journal.seek(0)
            journal.write(bytes(size))
            journal.flush()
            os.fsync(journal.fileno())
        self._file.execute("COMMIT")

    def erased_at(self, user: str) -> int:
        """When the user was last erased, in microseconds since 1970; 0: never."""
        with self._lock:
            found = self._file.execute("SELECT at FROM erased WHERE user = ?", [self.owner(user)]).fetchone()
        return 0 if found is None else int(found[0])

    def erase_requests(self, request_ids: Iterable[str]) -> None:
        """Remember, by keyed hashes, what erased users have asked: what is said of it later is not to be kept."""
        rows = [(self._request(one),) for one in request_ids]
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR IGNORE INTO erased_requests VALUES (?)", rows)
            self._file.execute("COMMIT")

    def is_erased_request(self, request_id: str) -> bool:
        """Whether a request was of a user who has been erased since."""
        with self._lock:
            found = self._file.execute(
                "SELECT 1 FROM erased_requests WHERE request = ?", [self._request(request_id)]
            ).fetchone()
        return found is not None

    def _request(self, request_id: str) -> bytes:
        return self.hash(b"request:" + request_id.encode("utf-8", "surrogatepass"))

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._file.close()

    def _key(self, owner: bytes) -> AESGCM:
        """The user's key, a new one for a new user."""
        with self._lock:
            known = self._known.get(owner)
            if known is not None:
                return known
            found = self._file.execute("SELECT key FROM keys WHERE user = ?", [owner]).fetchone()
            if found is None:
                self._file.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", [owner, AESGCM.generate_key(256)])
                found = self._file.execute("SELECT key FROM keys WHERE user = ?", [owner]).fetchone()
            key = AESGCM(found[0])
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[owner] = key
            return key
