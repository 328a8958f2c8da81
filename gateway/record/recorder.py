"""Where do records go, and how much of what is said do they hold? One `Recorder` for each gateway process.

They go into the request log, if there is one, and into telemetry, if that is on.
"""

import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal

import msgspec

from flywheel.log import Durability, Log
from flywheel.record import Content, Record, encode
from gateway.batches.folder import write_whole
from gateway.telemetry.telemetry import Telemetry
from gateway.telemetry.trace import Carried, Trace, Traces

Mode = Literal["full", "redacted", "hash", "none"]
_STRICTER: Final = ("full", "redacted", "hash", "none")
_REMEMBERED: Final = 100_000  # ids that clients gave, to tell repeated ones apart

Done = Callable[[bool], None]


class RecordPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How requests are recorded.

    ``content`` is how much of what is said is kept; models and keys may say otherwise, and the strictest holds.
    """

    path: str
    content: Mode = "full"
    durability: Durability = "os"
    models: Mapping[str, Mode] = {}
    keys: Mapping[str, Mode] = {}


class Recorder:
    """Writes the records of one gateway process.

    Args:
        plan: how; None: there is no log.
        telemetry: where traces and metrics of them go; None: nowhere.
    """

    def __init__(self, plan: RecordPlan | None, telemetry: Telemetry | None = None) -> None:
        self.log = Log(Path(plan.path), durability=plan.durability) if plan is not None else None
        self.telemetry = telemetry
        self._plan = plan
        self._untold = Traces()
        self._modes: dict[tuple[str, str], Mode] = {}
        self._ids: set[str] = set()
        self._order: deque[str] = deque()
        self._pepper = b""

    def change(self, plan: RecordPlan | None) -> bool:
        """Keep more or less of what is said from now on; False where a plan wants more than that."""
        if plan is None or self._plan is None:
            return plan is self._plan
        if (plan.path, plan.durability) != (self._plan.path, self._plan.durability):
            return False
        self._plan = plan
        self._modes.clear()
        return True

    def start(self) -> None:
        """Close what an earlier process left open, and be ready. Called in the event loop."""
        if self.log is not None and self._plan is not None:
            self.log.start()
            self._pepper = _secret(Path(self._plan.path) / "hash.key")
        if self.telemetry is not None:
            self.telemetry.start()

    def close(self) -> None:
        """Write what is left."""
        if self.log is not None:
            self.log.close()
        if self.telemetry is not None:
            self.telemetry.close()

    def join(self, carried: Carried) -> Trace:
        """The place in a trace of a request that came with ``carried``."""
        return (self._untold if self.telemetry is None else self.telemetry.traces).join(carried)

    def unique(self, request_id: str) -> str:
        """The id under which a request is recorded: its own, unless a client gave the same one before."""
        if request_id in self._ids:
            return f"{request_id}-{secrets.token_hex(4)}"
        self._ids.add(request_id)
        self._order.append(request_id)
        if len(self._order) > _REMEMBERED:
            self._ids.discard(self._order.popleft())
        return request_id

    def content_of(self, model: str, key: str) -> Content:
        """An empty content, with the mode of requests for ``model`` by ``key``."""
        if self._plan is None:
            return Content()
        mode = self._modes.get((model, key))
        if mode is None:
            plan = self._plan
            said = [plan.models.get(model, plan.content), plan.keys.get(key, plan.content)]
            if not model:  # nobody knows whose words these are
                said += plan.models.values()
            mode = self._modes[model, key] = max(said, key=_STRICTER.index)
        return Content(mode)

    def begin(self, record: Record) -> None:
        """A request is let in. What it says comes with its end."""
        if self.log is None:
            return
        content, record.content = record.content, None
        self.log.begin(record.request_id, encode(record))
        record.content = content

    def end(self, record: Record, trace: Trace, done: Done | None) -> None:
        """A request is over."""
        if record.content is not None:
            self._keep(record.content)
        if self.telemetry is not None:
            self.telemetry.ended(record, trace)
        if self.log is not None:
            self.log.append(record.request_id, encode(record), done)
        elif done is not None:
            done(False)

    def _keep(self, content: Content) -> None:
        """Leave of ``content`` what its mode says."""
        if content.mode == "full":
            return
        if content.mode == "hash":
            content.input_hash = self._hash(content.input)
            content.output_hash = self._hash(content.output)
        content.input = content.output = None

    def _hash(self, text: bytes | None) -> bytes | None:
        return blake2b(text, key=self._pepper, digest_size=16).digest() if text is not None else None


def _secret(path: Path) -> bytes:
    """What hashes in this log are keyed with, so that nobody can try texts out; made the first time."""
    with contextlib.suppress(OSError):
        if not path.exists():
            write_whole(path, secrets.token_bytes(32))
        return path.read_bytes()
    return secrets.token_bytes(32)  # the disk doesn't take it: equal texts are equal for this process only
