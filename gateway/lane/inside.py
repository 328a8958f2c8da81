"""How does a request from within pass through? A lane's client that hands on what the lane writes, taken apart."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import httptools

from gateway.lane import heads
from gateway.lane.routed import GivenExchange
from gateway.telemetry.metrics import Outcome
from gateway.traffic.keys import Key
from gateway.traffic.limits.limiter import Tab
from gateway.wire import errors

if TYPE_CHECKING:
    from gateway.fleet.upstream.target import Target
    from gateway.lane.lane import Lane
    from gateway.lane.lanes import Lanes

_FULL: Final = 1 << 18  # bytes that wait to be read; with more, the target is made to wait


class BrokenOffError(Exception):
    """The answer can't be completed, and is nothing that an error could be put after."""


class Inside:
    """A request on its way through a lane, and its answer: a head, then parts of a body.

    Args:
        lanes: all lanes.
        lane: the one that it takes.
        endpoint: the path.
        sent: the request's headers.
        body: its body, whole.
        key: whose it is.
        tab: what the request has of that key's limits.
        variant: what the answer calls who made it.
        request_id: what it is called in logs.
        background: nobody waits for it.
        unseen: no client has asked for it.
    """

    def __init__(
        self,
        lanes: "Lanes",
        lane: "Lane",
        *,
        endpoint: str,
        sent: heads.Headers,
        body: bytes,
        key: Key,
        tab: Tab,
        variant: str,
        request_id: str,
        background: bool,
        unseen: bool,
    ) -> None:
        self.status = 0
        self.headers: heads.Headers = []
        self._parser = httptools.HttpResponseParser(self)
        self._parts: deque[bytes] = deque()
        self._waiting = 0
        self._something = asyncio.Event()
        self._headed = self._over = False
        self._fault: Exception | None = None
        head = heads.RequestHead(endpoint, sent, keep_alive=True, chunked=True)
        self._passing = GivenExchange(lanes, self, head, lane, key, tab, variant, background=background, unseen=unseen)
        self._passing.request_id = request_id.encode()
        self._passing.take(body)
        self._passing.start()

    @property
    def outcome(self) -> Outcome:
        """What has become of it, once it is over."""
        return self._passing.outcome

    @property
    def label(self) -> str:
        """What metrics call its model."""
        return self._passing.label

    @property
    def target(self) -> "Target | None":
        """Who answers, or was asked last; None before anybody is."""
        return self._passing.target

    @property
    def attempts(self) -> int:
        """How many targets it was sent to."""
        return self._passing.attempts

    @property
    def error(self) -> errors.ApiError | None:
        """What the answer says is wrong, where that isn't a target's answer; known once `head` has returned."""
        return self._passing.error

    @property
    def broken(self) -> errors.ApiError | None:
        """Why the answer has no end of its own; known once `parts` has."""
        return self._passing.broken

    async def head(self) -> int:
        """The answer's status, once it is there; `headers` then, too.

        Raises:
            Exception: what `leave` was called with.
        """
        while not self._headed:
            await self._wait()
        return self.status

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            BrokenOffError: there won't be more of it.
            Exception: what `leave` was called with.
        """
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._waiting -= len(part)
                if self._waiting + len(part) > _FULL >= self._waiting:
                    self._passing.pause(False)
                yield part
            if self._over and self._fault is None:
                return
            await self._wait()

    async def beginning(self, size: int) -> bytes:
        """All of the body, or, where it is longer, a little more than its first ``size`` bytes; `parts` has the rest.

        Raises:
            BrokenOffError: there won't be more of it.
            Exception: what `leave` was called with.
        """
        found = b""
        async for part in self.parts():
            found += part
            if len(found) > size:
                break
        return found

    def leave(self, fault: Exception | None = None) -> None:
        """End it, if it isn't over: nobody wants the answer any more. Who still waits for it gets the ``fault``."""
        if not self._over:
            self._over, self._fault = True, fault
            self._passing.abandon()
            self._something.set()

    async def _wait(self) -> None:
        if self._fault is not None:
            raise self._fault
        self._something.clear()
        await self._something.wait()

    # What the exchange calls

    def write(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def done(self, close: bool) -> None:
        self._over = True
        self._something.set()

    def abort(self) -> None:
        self._over, self._fault = True, BrokenOffError()
        self._parts.clear()
        self._something.set()

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._headed = True
        self._something.set()

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        if self._waiting <= _FULL < self._waiting + len(data):
            self._passing.pause(True)
        self._waiting += len(data)
        self._something.set()
