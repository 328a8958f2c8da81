"""How much of a pair may be kept for review, and who can read it? What is true of the request log is true of it.

With a log, a pair is kept as the content mode of its model and key has it: not at all in ``hash`` and ``none``. It is
sealed under its user's key, and lies beside the log, so that to forget the user is to forget what was said here as
well. Without a log nobody has said how much, there are no keys, and pairs are kept as they are.
"""

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from flywheel.content import Mode
from flywheel.log import beside
from gateway.traffic.routes import user_of
from gateway.wire.shadows import ShadowPair

if TYPE_CHECKING:
    from gateway.record.recorder import Recorder

KEPT: Final = frozenset[Mode]({"full", "redacted"})
"""The modes in which pairs are kept."""

_PART: Final = "pair"
_NAME: Final = 256  # characters of a user's name are in the log


class _Line(msgspec.Struct, omit_defaults=True):
    """A sealed pair. Without ``sealed``, a line is a `ShadowPair` as it is."""

    owner: str = ""
    at: float = 0.0
    sealed: bytes | None = None


_encode: Final = msgspec.json.Encoder().encode
_line: Final = msgspec.json.Decoder(_Line).decode
_pair: Final = msgspec.json.Decoder(ShadowPair).decode


class Privacy:
    """What pairs owe to the request log of ``recorder``, if it has one."""

    def __init__(self, recorder: "Recorder | None" = None) -> None:
        self._recorder = recorder if recorder is not None and recorder.log is not None else None

    @property
    def folder(self) -> Path | None:
        """Where files of pairs belong; None: there is no log to put them beside."""
        log = self._recorder.folder if self._recorder is not None else None
        return beside.folder(log) if log is not None else None

    def mode(self, model: str, key: str) -> Mode:
        """How much may be kept of what is asked of ``model`` by ``key``."""
        return "full" if self._recorder is None else self._recorder.mode(model, key)

    def seal(self, line: bytes, at: float, asked: bytes) -> bytes:
        """The line to keep of a pair's JSON; empty where it can't be sealed. For any thread.

        ``at``: when that was; ``asked``: the request, which says whose words they are.
        """
        user = user_of(asked)[:_NAME] if self._recorder is not None else ""
        if self._recorder is None or not user:
            return line
        keys = self._recorder.keys
        if keys is None:
            return b""
        try:
            return _encode(_Line(keys.owner(user).hex(), at, keys.seal(user, {_PART: line})))
        except (OSError, sqlite3.Error):
            return b""

    def open(self, line: bytes) -> ShadowPair | None:
        """The pair in a line; None where nobody can read it any more."""
        found = _line(line)
        if found.sealed is None:
            return _pair(line)
        keys = self._recorder.keys if self._recorder is not None else None
        if keys is None:
            return None
        try:
            parts = keys.open(bytes.fromhex(found.owner), found.sealed)
        except (ValueError, OSError, sqlite3.Error):
            return None
        return _pair(parts[_PART]) if parts else None


def is_line(line: bytes) -> bool:
    """Whether it is a pair, sealed or not."""
    try:
        if _line(line).sealed is None:
            _pair(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True
