"""How does a gateway see that a worker lives, while that computes a step of seconds?

A thread repeats the last load report. It falls silent when the worker's loop hasn't come around for so long that it
never will: then the gateway should take this worker for lost.
"""

import threading
import time
from typing import Final

from engine.connections import Connections

EVERY: Final = 0.25
# No step takes that long but one that hangs. The largest prompts of a model too large for its CPU take a minute.
_STUCK: Final = 300.0


class Heartbeat:
    """Sends a frame through ``connections`` every ``every`` seconds, as long as `seen` is called (from one thread)."""

    def __init__(self, connections: Connections, every: float = EVERY, stuck: float = _STUCK) -> None:
        self._connections = connections
        self._every, self._stuck = every, stuck
        self._frame: bytes | bytearray = b""
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; nothing is sent before there is a frame."""
        self._thread.start()

    def seen(self) -> None:
        """The loop has come around."""
        self._seen = time.monotonic()

    def repeat(self, frame: bytes | bytearray) -> None:
        """Send this from now on."""
        self._frame = frame

    def close(self) -> None:
        """Send nothing any more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            if self._frame and time.monotonic() - self._seen < self._stuck:
                self._connections.beat(self._frame)
