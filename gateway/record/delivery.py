"""How is the last of an answer kept back until its request is on the record? Between a lane's exchange and its client.

The exchange says when what it writes next is the last (`hold`), and is told when that may go out (`release`).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.lane.exchange import Client


class Delivery:
    """Stands before the client of a request that is recorded."""

    __slots__ = ("_aborted", "_client", "_close", "_held", "_released")

    def __init__(self, client: "Client") -> None:
        self._client: Client | None = client
        self._held: list[bytes] | None = None
        self._released = False
        self._aborted = False
        self._close: bool | None = None

    def write(self, data: bytes) -> None:
        """See `Client`."""
        if self._held is not None:
            self._held.append(data)
        elif self._client is not None:
            self._client.write(data)

    def hold(self) -> None:
        """What is written from now on waits for `release`."""
        if self._held is None and not self._released:
            self._held = []

    def release(self, written: bool) -> None:
        """The record is written, or can't be for now."""
        held, self._held = self._held, None
        self._released = True
        if held and self._client is not None:
            self._client.write(held[0] if len(held) == 1 else b"".join(held))
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
