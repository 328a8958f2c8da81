"""How do gateways see that a worker lives, and what others have sent it, while it computes a step of seconds?

A thread repeats the last load report four times a second. It sends one sooner, within `TICK`, when there is news: when
the loop had one that wasn't due yet, or when requests have come that the loop hasn't seen because it computes. So what
one gateway places is known to the others within `TICK`, however long steps take. The thread falls silent when the
worker's loop hasn't come around for so long that it never will: then gateways should take this worker for lost.
"""

import threading
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from engine.connections import Connections
from engine.link import Load, Submit, ToWorker, frame

EVERY: Final = 0.25
TICK: Final = 0.05
# No step takes that long but one that hangs. The largest prompts of a model too large for its CPU take a minute.
_STUCK: Final = 300.0


class Heartbeat:
    """Sends load reports through ``connections``, as long as `seen` is called (from one thread).

    Args:
        every: seconds from one report to the next, where there is no news.
        stuck: seconds without `seen` after which it falls silent.
        tick: seconds from one look for news to the next.
    """

    def __init__(
        self, connections: Connections, every: float = EVERY, stuck: float = _STUCK, tick: float = TICK
    ) -> None:
        self._connections = connections
        self._every, self._stuck, self._tick = every, stuck, tick
        self._load: Load | None = None
        self._said: Load | None = None
        self._sent = 0.0
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; nothing is sent before there is a report."""
        self._thread.start()

    def seen(self) -> None:
        """The loop has come around."""
        self._seen = time.monotonic()

    def repeat(self, load: Load, *, sent: bool = False) -> None:
        """This is how busy the worker is. ``sent``: the loop has said so itself, to everybody."""
        if sent:
            self._said, self._sent = load, time.monotonic()
        self._load = load

    def close(self) -> None:
        """Send nothing any more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._tick):
            now = time.monotonic()
            if self._load is not None and now - self._seen < self._stuck:
                self._beat(self._load, now)

    def _beat(self, load: Load, now: float) -> None:
        load = _with(load, self._connections.read_ahead())
        if load != self._said or now - self._sent >= self._every:
            self._said, self._sent = load, now
            self._connections.beat(frame(load))


def _with(load: Load, messages: Sequence[ToWorker]) -> Load:
    """``load`` and what these messages will add to it."""
    asked = [message for message in messages if isinstance(message, Submit)]
    if not asked:
        return load
    tokens = sum(len(message.tokens) // 4 for message in asked if not message.background)
    return msgspec.structs.replace(
        load,
        waiting=load.waiting + len(asked),
        waiting_tokens=load.waiting_tokens + tokens,
        backlog=load.backlog + (tokens / load.prefill_rate if load.prefill_rate else 0.0),
    )
