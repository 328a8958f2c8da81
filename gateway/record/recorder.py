"""Where do records go, and how much of what is said do they hold? One `Recorder` for each gateway process.

They go into the request log, if there is one, and into telemetry, if that is on.
"""

import contextlib
import logging
import secrets
import sqlite3
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from flywheel.content import MODES, Mode, keep, keep_feedback, keep_fields
from flywheel.log import Durability, Log
from flywheel.record import Content, Feedback, Record
from gateway.telemetry.telemetry import Telemetry
from gateway.telemetry.trace import NO_TRACE, NOTHING, Carried, Trace, Traces

if TYPE_CHECKING:
    from flywheel.user_keys import UserKeys

log = logging.getLogger(__name__)

_REMEMBERED: Final = 10_000  # ids of requests, or twice as many, to tell those apart that clients give twice
_LOOK_AFTER: Final = 1.0  # seconds until the users' keys are looked for again
_COMPLAIN_EVERY: Final = 5.0  # seconds
_OTHER: Final = "\0"  # a model that no setting is about, whatever a client calls it

Done = Callable[[bool], None]


class RecordPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How requests are recorded.

    ``content`` is how much of what is said is kept; models and keys may say otherwise, and the strictest holds.
    ``days`` and ``size`` (bytes) are what is kept of the table.
    """

    path: str
    content: Mode = "full"
    durability: Durability = "os"
    days: int | None = None
    size: int | None = None
    models: Mapping[str, Mode] = {}
    keys: Mapping[str, Mode] = {}


def _is_strict(plan: RecordPlan | None) -> bool:
    """Whether of any request less is kept than all."""
    return plan is not None and {plan.content, *plan.models.values(), *plan.keys.values()} != {"full"}


class Recorder:
    """Writes the records of one gateway process.

    Args:
        plan: how; None: there is no log.
        telemetry: where traces and metrics of them go; None: nowhere.
        names: those that clients may ask for.
    """

    def __init__(
        self,
        plan: RecordPlan | None,
        telemetry: Telemetry | None = None,
        names: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.log = Log(Path(plan.path), durability=plan.durability) if plan is not None else None
        self.telemetry = telemetry
        self.names = names
        self._plan = plan
        self._untold = Traces()
        self._modes: dict[tuple[str, str], Mode] = {}
        self._strict = _is_strict(plan)
        self._usual = _usual(plan)
        self._ids: set[str] = set()
        self._older_ids: set[str] = set()
        self._keys: UserKeys | None = None
        self._look_at = 0.0
        self._unsaid = 0
        self._complain_at = 0.0

    def change(self, plan: RecordPlan | None) -> bool:
        """Keep more or less of what is said from now on; False where a plan wants more than that."""
        if plan is None or self._plan is None:
            return plan is self._plan
        if (plan.path, plan.durability) != (self._plan.path, self._plan.durability):
            return False
        self._plan = plan
        self._strict = _is_strict(plan)
        self._usual = _usual(plan)
        self._modes.clear()
        return True

    def start(self) -> None:
        """Close what an earlier process left open, and be ready. Called in the event loop."""
        if self.log is not None and self._plan is not None:
            self.log.start()
            self._open_keys(self._plan)
        if self.telemetry is not None:
            self.telemetry.start()

    def close(self) -> None:
        """Write what is left."""
        if self.log is not None:
            self.log.close()
        if self._keys is not None:
            self._keys.close()
        if self.telemetry is not None:
            self.telemetry.close()

    def join(self, carried: Carried) -> Trace:
        """The place in a trace of a request that came with ``carried``; none where nobody would know of it."""
        if self.telemetry is not None:
            return self.telemetry.traces.join(carried)
        return NO_TRACE if carried is NOTHING else self._untold.join(carried)

    def unique(self, request_id: str) -> str:
        """The id under which a request is recorded: its own, unless a client gave the same one before."""
        if request_id in self._ids or request_id in self._older_ids:
            return f"{request_id}-{secrets.token_hex(4)}"
        if len(self._ids) >= _REMEMBERED:
            self._older_ids, self._ids = self._ids, set()
        self._ids.add(request_id)
        return request_id

    @property
    def folder(self) -> Path | None:
        """The log's, if there is one."""
        return Path(self._plan.path) if self._plan is not None else None

    @property
    def keys(self) -> "UserKeys | None":
        """The users' keys, where they can be had."""
        if self._keys is None and self._plan is not None and monotonic() >= self._look_at:
            self._open_keys(self._plan)
        return self._keys

    def _open_keys(self, plan: RecordPlan) -> None:
        from flywheel.user_keys import UserKeys, keys_path  # OpenSSL's megabytes are for who has a log

        self._look_at = monotonic() + _LOOK_AFTER
        with contextlib.suppress(OSError, sqlite3.Error):
            self._keys = UserKeys(keys_path(Path(plan.path)), durable=plan.durability == "disk")

    def mode(self, model: str, key: str) -> Mode:
        """How much is kept of requests for ``model`` by ``key``."""
        if self._usual is not None:
            return self._usual
        plan = self._plan
        if plan is None:
            return "none"
        if model and model not in plan.models:
            model = _OTHER
        mode = self._modes.get((model, key))
        if mode is None:
            said = [plan.models.get(model, plan.content), plan.keys.get(key, plan.content)]
            if not model:  # nobody knows whose words these are
                said += plan.models.values()
            mode = self._modes[model, key] = max(said, key=MODES.index)
        return mode

    def begin(self, record: Record) -> None:
        """A request is let in. What it says comes with its end."""
        if self.log is not None:
            if self._strict:
                keep_fields(self.mode(record.request_model, record.key), record)
            self.log.begin(record)

    def end(self, record: Record, asked: bytes | None, answered: bytes | None, trace: Trace, done: Done | None) -> None:
        """A request is over; ``asked`` is its body, where that has come, ``answered`` its answer, if there is one."""
        if self._strict:
            keep_fields(self.mode(record.request_model, record.key), record)
        if self.telemetry is not None:
            self.telemetry.ended(record, trace)
        if self.log is not None:
            if asked is not None:
                record.content = self._content(record, asked, answered)
            self.log.append(record, done)
        elif done is not None:
            done(False)

    def _content(self, record: Record, asked: bytes, answered: bytes | None) -> Content:
        """Of what was said what the mode lets be kept, sealed under its user's key where there is a user."""
        try:
            mode = self.mode(record.request_model, record.key)
            keys = self.keys
            if keys is None and mode != "none":
                raise OSError("the users' keys can't be had")
            if mode == "full" and not record.user:
                return Content(mode, asked, answered)  # as `keep` does
            return keep(mode, asked, answered, user=record.user, keys=keys)
        except Exception as error:  # whatever it is: that there was a request, is on record
            self._unsaid += 1
            if (now := monotonic()) >= self._complain_at:
                self._complain_at = now + _COMPLAIN_EVERY
                log.error(
                    "what was said can't be recorded, only that it was, of %d since the start: %s", self._unsaid, error
                )
            return Content("none")

    def feedback(self, feedback: Feedback, done: Done) -> None:
        """Somebody thinks something of an answer."""
        if self.log is None or self._plan is None:
            done(False)
            return
        mode = self.mode("", feedback.key)  # nobody knows here of which model's answer it is
        try:
            keys = self.keys
            kept = keep_feedback(mode if keys is not None else "none", feedback, keys)
        except (OSError, sqlite3.Error):
            kept = keep_feedback("none", feedback)
        self.log.feedback(kept, done)


def _usual(plan: RecordPlan | None) -> Mode | None:
    """How much is kept, where that is the same for all models and keys."""
    return plan.content if plan is not None and not plan.models and not plan.keys else None
