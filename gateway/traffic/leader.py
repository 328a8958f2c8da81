"""How does what several gateway processes see come together? Those that follow tell the one that leads.

Each follower has a connection to the leader, over a Unix socket, and sends what it has to tell every `EVERY` seconds,
in the order in which it happened. Nothing is answered, nobody waits, no request notices. Memory is bounded: where the
leader is away, or so slow that more than `BEHIND` bytes wait for it, the connection is given up with all that waits,
and another one is made. So there are no holes in what comes over a connection: it is complete until the connection
ends. Both sides are told of that end, and say themselves what it means for them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Final, cast

import msgspec

from engine.link import FrameReader
from gateway.traffic.rollout.reports import Began, Came, Ended
from gateway.traffic.shadow.reports import CopiesLost, PairJudged

EVERY: Final = 0.1
"""Seconds between two messages of a follower."""
BEHIND: Final = 16 << 20
"""Bytes that may wait for a leader that is slow."""
_WAITING: Final = 100_000  # reports that may wait for the next message

Report = Came | Began | Ended | PairJudged | CopiesLost
"""What a follower tells: all of it is understood on the other side, which runs the same code."""

_encode_into: Final = msgspec.msgpack.Encoder().encode_into
_decode: Final = msgspec.msgpack.Decoder(list[Report]).decode

log = logging.getLogger(__name__)


class ToLeader:
    """A follower's way to the leader, who listens at ``path``. It connects once there is something to tell.

    Attributes:
        on_loss: called when a connection has ended, or can't be made, with what was waiting to be told.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.on_loss: list[Callable[[Sequence[Report]], None]] = []
        self._waiting: list[Report] = []
        self._some = asyncio.Event()
        self._transport: asyncio.WriteTransport | None = None

    def tell(self, report: Report) -> None:
        """Have something told. It never waits, and never raises."""
        self._waiting.append(report)
        if len(self._waiting) > _WAITING:  # nobody works here (`run`)
            self._give_up()
        self._some.set()

    async def run(self) -> None:
        """Tell until cancelled; what waits then is told at once."""
        try:
            while True:
                await self._some.wait()
                await asyncio.sleep(EVERY)
                await self._tell_all()
        finally:
            if self._transport is not None:
                self._send(self._transport)
                self._transport.close()

    async def _tell_all(self) -> None:
        try:
            transport = self._transport or await self._connect()
        except OSError as error:
            log.debug("the process that leads can't be reached: %s", error)
            self._give_up()
            return
        if transport.get_write_buffer_size() > BEHIND:
            log.warning("the process that leads is too slow: what it has not been told is dropped")
            transport.abort()
            self._give_up()
            return
        self._send(transport)

    async def _connect(self) -> asyncio.WriteTransport:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: _Told(self._ended), str(self._path))
        return self._transport

    def _send(self, transport: asyncio.WriteTransport) -> None:
        waiting, self._waiting = self._waiting, []
        self._some.clear()
        if waiting:
            out = bytearray(4)
            _encode_into(waiting, out, 4)
            out[:4] = (len(out) - 4).to_bytes(4, "little")
            transport.write(out)

    def _ended(self, transport: asyncio.BaseTransport | None) -> None:
        if transport is self._transport:
            self._give_up()

    def _give_up(self) -> None:
        """Begin anew: with another connection, and with nothing that belongs to the one before."""
        self._transport = None
        waiting, self._waiting = self._waiting, []
        self._some.clear()
        for told in self.on_loss:
            told(waiting)


class _Told(asyncio.Protocol):
    """A connection over which nothing comes back, whose end is told to ``ended``."""

    def __init__(self, ended: Callable[[asyncio.BaseTransport | None], None]) -> None:
        self._ended = ended
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(self._transport)


class Followers:
    """What the leader hears.

    Args:
        path: where it listens.
        take: called with what a follower tells, and with its number, which each connection has for itself.
        gone: called with the number of a connection that has ended.
    """

    def __init__(self, path: Path, take: Callable[[int, Report], None], gone: Callable[[int], None]) -> None:
        self._path = path
        self.take = take
        self.gone = gone
        self._numbers = count(1)
        self._connected: set[asyncio.BaseTransport] = set()

    async def run(self) -> None:
        """Listen until cancelled."""
        self._path.unlink(missing_ok=True)  # of a leader that was here before, and died
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: _Follower(self, next(self._numbers)), str(self._path))
        try:
            await loop.create_future()
        finally:
            server.close()
            for transport in list(self._connected):
                transport.close()

    def came(self, transport: asyncio.BaseTransport) -> None:
        """A follower is there."""
        self._connected.add(transport)

    def left(self, transport: asyncio.BaseTransport, number: int) -> None:
        """A follower is there no more."""
        self._connected.discard(transport)
        self.gone(number)


class _Follower(asyncio.Protocol):
    """The leader's end of a connection."""

    def __init__(self, followers: Followers, number: int) -> None:
        self._followers = followers
        self._number = number
        self._frames = FrameReader()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one but by name
        self._followers.came(transport)

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            for payload in self._frames.feed(data):
                for report in _decode(payload):
                    self._followers.take(self._number, report)
        except Exception:  # what isn't understood would be a hole
            log.exception("what another gateway process tells can't be used")
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        with contextlib.suppress(KeyError):
            self._followers.left(self._transport, self._number)
