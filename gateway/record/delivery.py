"""How is the last of an answer kept back until its request is on the record? Between a lane's exchange and its client.

The exchange says when what it writes next is the last (`hold`), and is told when that may go out (`release`).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.lane.exchange import Client


class Delivery:
    """Stands before the client of a request that is recorded."""

    __slots__ = ("_aborted", "_client", "_close", "_ended", "_held", "_released")

    def __init__(self, client: "Client") -> None:
        self._client: Client | None = client
        self._held: list[bytes] | None = None
        self._released = self._ended = self._aborted = self._close = False

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
        self._released = True
        held, self._held = self._held, None
        client = self._client
        if held and client is not None:
            client.write(held[0] if len(held) == 1 else b"".join(held))
        if self._ended:
            self._finish()

    def close_after(self) -> None:
        """Nothing may follow this answer, even if it is complete already."""
        self._close = True

    def leave(self) -> None:
        """The client has gone: nothing is for it any more."""
        self._client = None

    def done(self, close: bool) -> None:
        """See `Client`."""
        self._close = close
        self._ended = True
        if self._released:
            self._finish()

    def abort(self) -> None:
        """See `Client`."""
        self._aborted = self._ended = True
        if self._released:
            self._finish()

    def _finish(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if self._aborted:
            client.abort()
        else:
            client.done(self._close)
