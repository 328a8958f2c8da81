"""How does the gateway speak to one worker over `engine.link`?

One connection carries every request. A `Step` frame is taken apart in one go: each output is put into its request's
`OutputStream` and wakes the one task that waits there. There is no task, queue or lock per token.
"""

import asyncio
import logging
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypedDict, Unpack, cast

from engine.link import (
    PROTOCOL,
    Abort,
    Drain,
    Failed,
    FrameReader,
    Hello,
    LinkError,
    Load,
    Output,
    Pooling,
    Progress,
    Sampling,
    Slo,
    Step,
    Submit,
    ToGateway,
    decode_to_gateway,
    frame,
    parse_address,
)

log = logging.getLogger(__name__)


class SubmitOptions(TypedDict, total=False):
    """The fields of `Submit` beside prompt and sampling."""

    tenant: str
    priority: int
    age: float
    slo: Slo | None
    salt: str
    background: bool
    embed: Pooling


class WorkerLost(Exception):
    """The worker that ran a request has gone, or its connection has."""


class RequestFailed(Exception):
    """The worker refused or gave up a request; ``failed`` says why."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class OutputStream:
    """What some requests bring, in order: those of one client's request, such as its ``n`` choices.

    One task reads it; whoever is done with it calls `close`. Memory stays bounded without back-pressure on the link: a
    request never has more outputs than its ``max_tokens``.
    """

    __slots__ = ("_link", "_open", "_outputs", "_reason", "_waiter")

    def __init__(self, link: "WorkerLink") -> None:
        self._link = link
        self._open: set[int] = set()
        self._outputs: list[Output] = []
        self._waiter: asyncio.Future[None] | None = None
        self._reason: BaseException | None = None

    @property
    def open(self) -> frozenset[int]:
        """The requests that have neither ended nor been aborted."""
        return frozenset(self._open)

    def submit(self, prompt: Sequence[int], sampling: Sampling, **more: Unpack[SubmitOptions]) -> int:
        """Begin a request for the token ids of ``prompt``; returns the ``id`` that its outputs bear.

        Raises:
            WorkerLost: the connection has gone.
        """
        id = self._link.submit(self, prompt, sampling, **more)
        self._open.add(id)
        return id

    async def next(self) -> list[Output]:
        """Wait for outputs and return all that have come, at least one.

        When each request has had one with a ``finish`` there is nothing more to wait for.

        Raises:
            WorkerLost: the worker has gone.
            RequestFailed: the worker gave a request up.
            Exception: what `interrupt` was given.
        """
        while not self._outputs:
            if self._reason is not None:
                raise self._reason
            self._waiter = self._link.loop.create_future()
            await self._waiter
        outputs, self._outputs = self._outputs, []
        return outputs

    def interrupt(self, reason: BaseException) -> None:
        """Forget what hasn't been read, abort the requests, and raise ``reason`` in whoever waits, now or later."""
        self._outputs.clear()
        self.close()
        self.fail(reason)

    def close(self) -> None:
        """Abort all requests that have not ended."""
        if self._open:
            self._link.abort(self._open)
            self._open.clear()

    def abort(self, id: int) -> None:
        """Abort one request, unless it has ended."""
        if id in self._open:
            self._open.discard(id)
            self._link.abort((id,))

    def put(self, output: Output) -> None:
        """Take what a step brought. For the link."""
        self._outputs.append(output)
        if output.finish is not None:
            self._open.discard(output.id)
        self._wake()

    def fail(self, reason: BaseException, id: int | None = None) -> None:
        """End without an answer, once all that came before has been read. For the link.

        ``id`` is the request that the worker gave up; without one they have all ended.
        """
        if id is None:
            self._open.clear()
        else:
            self._open.discard(id)
        if self._reason is None:
            self._reason = reason
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


class LinkOwner(Protocol):
    """Who is told what a link's worker says. Every call comes from the event loop."""

    def on_progress(self, progress: Progress) -> None: ...

    def on_hello(self, link: "WorkerLink", hello: Hello) -> None: ...

    def on_load(self, load: Load) -> None: ...

    def on_lost(self, link: "WorkerLink", reason: str) -> None: ...


class WorkerLink(asyncio.Protocol):
    """A connection to one worker. Made by `connect`; belongs to one event loop."""

    def __init__(self, owner: LinkOwner, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.hello: Hello | None = None
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._streams: dict[int, OutputStream] = {}
        self._next_id = 0

    @property
    def connected(self) -> bool:
        return self._transport is not None

    @property
    def requests(self) -> int:
        """How many requests have not ended."""
        return len(self._streams)

    def open(self) -> OutputStream:
        """A stream to submit requests to.

        Raises:
            WorkerLost: the connection has gone.
        """
        if self._transport is None:
            raise WorkerLost("the worker has gone")
        return OutputStream(self)

    def submit(
        self, stream: OutputStream, prompt: Sequence[int], sampling: Sampling, **more: Unpack[SubmitOptions]
    ) -> int:
        """What `OutputStream.submit` does."""
        if self._transport is None:
            raise WorkerLost("the worker has gone")
        id, self._next_id = self._next_id, self._next_id + 1
        self._transport.write(frame(Submit(id=id, tokens=int32_bytes(prompt), sampling=sampling, **more)))
        self._streams[id] = stream
        return id

    def abort(self, ids: Iterable[int]) -> None:
        """Have the worker forget requests at once."""
        gone = [id for id in ids if self._streams.pop(id, None) is not None]
        if gone and self._transport is not None:
            self._transport.write(frame(Abort(gone)))

    def drain(self) -> None:
        """Tell the worker to finish what it has and exit."""
        if self._transport is not None:
            self._transport.write(frame(Drain()))

    def interrupt_all(self, make_reason: Callable[[], BaseException]) -> None:
        """Abort every request, and raise a reason in each task that waits for one."""
        for stream in set(self._streams.values()):
            stream.interrupt(make_reason())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but ancestry.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                message = decode_to_gateway(payload)
                if type(message) is Step:
                    self._on_step(message)
                else:
                    self._on_rare(message)
        except LinkError as error:
            self._lose(f"the worker sent what is no message: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the worker's connection broke" if exc is None else f"the worker's connection broke: {exc}")

    def _on_step(self, step: Step) -> None:
        streams = self._streams
        for output in step.outputs:
            stream = streams.get(output.id)
            if stream is None:
                continue  # aborted: the worker sent this before it heard of it
            if output.finish is not None:
                del streams[output.id]
            stream.put(output)

    def _on_rare(self, message: ToGateway) -> None:
        match message:
            case Load():
                self._owner.on_load(message)
            case Failed():
                stream = self._streams.pop(message.id, None)
                if stream is not None:
                    stream.fail(RequestFailed(message), message.id)
            case Progress():
                self._owner.on_progress(message)
            case Hello():
                if message.protocol != PROTOCOL:
                    raise LinkError(f"it speaks protocol {message.protocol}, this gateway {PROTOCOL}")
                self.hello = message
                self._owner.on_hello(self, message)

    def _lose(self, reason: str) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.close()
        streams = set(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.fail(WorkerLost(reason))
        self._owner.on_lost(self, reason)


async def connect(address: str, owner: LinkOwner) -> WorkerLink:
    """Connect to the worker that listens on ``address``.

    Raises:
        OSError: nobody listens there (yet).
        ValueError: this is no address.
    """
    loop = asyncio.get_running_loop()
    _, where = parse_address(address)
    if isinstance(where, str):
        _, link = await loop.create_unix_connection(lambda: WorkerLink(owner, loop), where)
    else:
        _, link = await loop.create_connection(lambda: WorkerLink(owner, loop), *where)
    return link


def int32_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as `Submit.tokens` wants them: little-endian int32."""
    words = array("i", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
