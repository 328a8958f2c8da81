"""How is the last of an answer kept back until its request is on the record? Between a lane's exchange and its client.

What is written is collected, and goes out in the loop's next round; but where an answer has ended, when its record is
written (`release`).
"""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.lane.exchange import Client


class Delivery:
    """Stands before the client of a request that is recorded."""

    __slots__ = ("_aborted", "_client", "_close", "_loop", "_parts", "_released", "_scheduled", "_waits")

    def __init__(self, client: "Client", loop: asyncio.AbstractEventLoop) -> None:
        self._client: Client | None = client
        self._loop = loop
        self._parts: list[bytes] = []
        self._scheduled = False
        self._waits = False
        self._released = False
        self._aborted = False
        self._close: bool | None = None

    def write(self, data: bytes) -> None:
        """See `Client`."""
        self._parts.append(data)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_late)

    def _flush(self) -> None:
        if self._parts and not self._waits and self._client is not None:
            parts, self._parts = self._parts, []
            self._client.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def hold(self) -> None:
        """What has not gone out yet waits for `release`."""
        self._waits = True

    def release(self, written: bool) -> None:
        """The record is written, or can't be for now."""
        self._waits = False
        self._released = True
        self._flush()
        self._finish()

    def close_after(self) -> None:
        """Nothing may follow this answer, even if it is complete already."""
        if self._close is not None:
            self._close = True

    def leave(self) -> None:
        """The client has gone: nothing is for it any more."""
        self._client = None

    def done(self, close: bool) -> None:
        """See `Client`."""
        self._close = close
        self._finish()

    def abort(self) -> None:
        """See `Client`."""
        self._aborted = True
        self._finish()

    def _flush_late(self) -> None:
        self._scheduled = False
        self._flush()

    def _finish(self) -> None:
        client = self._client
        if client is None or not self._released:
            return
        if self._aborted:
            self._client = None
            client.abort()
        elif self._close is not None:
            self._client = None
            client.done(self._close)
