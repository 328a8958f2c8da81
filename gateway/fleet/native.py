"""How does the gateway speak to one worker over `engine.link`?

One connection carries every request. A `Step` frame is taken apart in one go: each output is put into its request's
`OutputStream` and wakes the one task that waits there. There is no task, queue or lock per token. Of each request it is
kept what it takes to go on with it elsewhere: that is `gateway.fleet.fleet`'s business.
"""

import asyncio
import hmac
import itertools
import logging
import secrets
import socket
import ssl
import sys
from array import array
from collections.abc import Callable, Collection, Sequence
from time import perf_counter
from typing import Protocol, TypedDict, Unpack, cast

import msgspec

from engine.link import (
    PROTOCOL,
    Abort,
    Blocks,
    Challenge,
    Failed,
    FrameReader,
    Hello,
    LinkError,
    Load,
    LoadAdapter,
    Output,
    Pooling,
    Progress,
    Proof,
    Sampling,
    Slo,
    Step,
    Submit,
    ToGateway,
    ToWorker,
    Welcome,
    decode_to_gateway,
    frame,
    parse_address,
    proof_of_gateway,
    proof_of_worker,
)

log = logging.getLogger(__name__)


class SubmitOptions(TypedDict, total=False):
    """The fields of `Submit` beside prompt and sampling."""

    tenant: str
    priority: int
    age: float
    slo: Slo | None
    salt: str
    adapter: str
    background: bool
    embed: Pooling
    sketch: bool


class WorkerLost(Exception):
    """The worker that ran a request has gone, or its connection has."""


class RequestFailed(Exception):
    """The worker refused or gave up a request; ``failed`` says why."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Ask:
    """One request on its way: what was asked, and what is there of its answer, so that any worker can go on with it.

    ``id`` is its own in this process, whichever worker it is sent to. ``placements`` counts the workers that have had
    it, ``link`` is that of the one that has it now, from which nothing has come yet while it is ``fresh``. ``since`` is
    when it was asked, ``held`` since when it waits for a worker (the event loop's clock), ``mishap`` what became of the
    last worker that had it, and ``avoid`` the names of those that were lost with it.
    """

    __slots__ = (
        "answer",
        "avoid",
        "fresh",
        "held",
        "id",
        "link",
        "mishap",
        "options",
        "placements",
        "prompt",
        "sampling",
        "since",
        "stream",
    )

    def __init__(
        self, stream: "OutputStream", id: int, prompt: Sequence[int], sampling: Sampling, options: SubmitOptions
    ) -> None:
        self.stream = stream
        self.id = id
        self.prompt = prompt
        self.sampling = sampling
        self.options = options
        self.answer: list[int] = []
        self.link: WorkerLink | None = None
        self.placements = 0
        self.fresh = True
        self.since = self.held = 0.0
        self.mishap = ""
        self.avoid: frozenset[str] = frozenset()

    def message(self, now: float) -> Submit:
        """What a worker is told: to begin, or to go on where another was lost."""
        answer = self.answer
        if not answer:
            options = self.options | {"age": self.options.get("age", 0.0) + now - self.since}
            return Submit(id=self.id, tokens=int32_bytes(self.prompt), sampling=self.sampling, **options)
        # The client has its first token: what matters now is that the next comes soon. And its prompt's scores.
        sampling = msgspec.structs.replace(self.sampling, prompt_logprobs=-1)
        tokens = int32_bytes(self.prompt) + int32_bytes(answer)
        return Submit(id=self.id, tokens=tokens, sampling=sampling, answered=len(answer), **self.options | {"age": 0.0})


class Carrier(Protocol):
    """Who brings requests to a worker: a link to one, or a fleet with many."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def submit(self, ask: Ask) -> None:
        """Bring a new request to a worker.

        Raises:
            WorkerLost: it can't be.
        """

    def abort(self, asks: Collection[Ask]) -> None:
        """Have requests forgotten at once, wherever they are."""

    def lost(self, ask: Ask, reason: str) -> None:
        """The worker that had a request has gone."""

    def refused(self, ask: Ask, failed: Failed) -> None:
        """The worker that had a request gives it up."""

    def begun(self, ask: Ask) -> None:
        """A request's first output from the worker that has it now has come."""

    def ended(self, ask: Ask) -> None:
        """A request has its last output."""


_ids = itertools.count()


class OutputStream:
    """What some requests bring, in order: those of one client's request, such as its ``n`` choices.

    One task reads it; whoever is done with it calls `close`. Memory stays bounded without back-pressure on the link: a
    request never has more outputs than its ``max_tokens``. All its requests are for ``adapter``, if there is one.
    """

    __slots__ = ("_asks", "_carrier", "_outputs", "_reason", "_waiter", "adapter", "placed", "placements", "worker")

    def __init__(self, carrier: Carrier, adapter: str = "") -> None:
        self._carrier = carrier
        self.adapter = adapter
        self.worker = ""
        """The name of the worker from which something came last for the first time."""
        self.placed: float | None = None
        """When a worker got the first of the requests, by ``perf_counter``; None: it is still to be placed."""
        self.placements = 0
        """How many workers had the one of its requests that the most had, one after the other."""
        self._asks: dict[int, Ask] = {}
        self._outputs: list[Output] = []
        self._waiter: asyncio.Future[None] | None = None
        self._reason: BaseException | None = None

    @property
    def open(self) -> frozenset[int]:
        """The requests that have neither ended nor been aborted."""
        return frozenset(self._asks)

    def submit(
        self, prompt: Sequence[int], sampling: Sampling, answer: Sequence[int] = (), **more: Unpack[SubmitOptions]
    ) -> int:
        """Begin a request for the token ids of ``prompt``; returns the ``id`` that its outputs bear.

        ``answer`` is what there is of its answer already: it goes on from there.

        Raises:
            WorkerLost: there is nobody to take it.
        """
        if self.adapter:
            more["adapter"] = self.adapter
        ask = Ask(self, next(_ids), prompt, sampling, more)
        ask.answer += answer
        ask.since = self._carrier.loop.time()
        self._carrier.submit(ask)
        self._asks[ask.id] = ask
        return ask.id

    async def next(self) -> list[Output]:
        """Wait for outputs and return all that have come, at least one.

        When each request has had one with a ``finish`` there is nothing more to wait for.

        Raises:
            WorkerLost: the worker has gone, and there is no other.
            RequestFailed: the worker gave a request up.
            Exception: what `interrupt` was given.
        """
        while not self._outputs:
            if self._reason is not None:
                raise self._reason
            self._waiter = self._carrier.loop.create_future()
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
        if self._asks:
            self._carrier.abort(self._asks.values())
            self._asks.clear()

    def abort(self, id: int) -> None:
        """Abort one request, unless it has ended."""
        ask = self._asks.pop(id, None)
        if ask is not None:
            self._carrier.abort((ask,))

    def put(self, ask: Ask, output: Output) -> None:
        """Take what a step brought. For the link."""
        if ask.fresh:
            ask.fresh = False
            if ask.link is not None:
                self.worker = ask.link.name
            self._carrier.begun(ask)
        ask.answer += output.tokens
        self._outputs.append(output)
        if output.finish is not None:
            self._asks.pop(ask.id, None)
            self._carrier.ended(ask)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def lost(self, ask: Ask, reason: str) -> None:
        """The worker that had a request has gone. For the link."""
        self._carrier.lost(ask, reason)

    def refused(self, ask: Ask, failed: Failed) -> None:
        """The worker that had a request gives it up. For the link."""
        self._carrier.refused(ask, failed)

    def fail(self, reason: BaseException, id: int | None = None) -> None:
        """End without an answer, once all that came before has been read. For the carrier.

        ``id`` is the request that was given up; without one they all have been.
        """
        if id is None:
            self._asks.clear()
        else:
            self._asks.pop(id, None)
        if self._reason is None:
            self._reason = reason
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class LinkOwner(Protocol):
    """Who is told what a link's worker says. Every call comes from the event loop."""

    def on_progress(self, progress: Progress) -> None: ...

    def on_hello(self, link: "WorkerLink", hello: Hello) -> None: ...

    def on_load(self, load: Load) -> None: ...

    def on_blocks(self, blocks: Blocks) -> None: ...

    def on_lost(self, link: "WorkerLink", reason: str) -> None: ...


class WorkerLink(asyncio.Protocol):
    """A connection to one worker. Made by `connect`; belongs to one event loop.

    With a ``secret`` both sides prove that they know it before anything else is said. ``heard`` is when the worker last
    sent anything (the event loop's clock). ``remote``: over TCP, where a peer can be gone without a word.
    """

    def __init__(
        self, owner: LinkOwner, loop: asyncio.AbstractEventLoop, secret: bytes = b"", remote: bool = False
    ) -> None:
        self.loop = loop
        self.remote = remote
        self.hello: Hello | None = None
        self.heard = loop.time()
        self.owner = owner
        self.name: str = getattr(owner, "name", "")
        self._secret = secret
        self._workers_nonce = self._nonce = b""
        self._trusted = not secret
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._asks: dict[int, Ask] = {}

    @property
    def connected(self) -> bool:
        return self._transport is not None

    @property
    def requests(self) -> int:
        """How many requests have not ended."""
        return len(self._asks)

    @property
    def asks(self) -> Collection[Ask]:
        """Those requests."""
        return self._asks.values()

    def open(self) -> OutputStream:
        """A stream of requests to this worker alone: they are lost with it.

        Raises:
            WorkerLost: the connection has gone.
        """
        if self._transport is None:
            raise WorkerLost("the worker has gone")
        return OutputStream(self)

    def submit(self, ask: Ask) -> None:
        """Send a request to this worker.

        Raises:
            WorkerLost: the connection has gone.
        """
        if self._transport is None:
            raise WorkerLost("the worker has gone")
        self._asks[ask.id] = ask
        ask.link = self
        ask.fresh = True
        ask.placements += 1
        stream = ask.stream
        stream.placements = max(stream.placements, ask.placements)
        if stream.placed is None:
            stream.placed = perf_counter()
        self._transport.write(frame(ask.message(self.loop.time())))

    async def load_adapter(self, name: str, folder: str) -> None:
        """Have the worker load an adapter, and wait until it has.

        Raises:
            WorkerLost: the connection has gone.
            RequestFailed: it can't be loaded.
        """
        stream = self.open()
        ask = Ask(stream, next(_ids), (), Sampling(max_tokens=0), {})
        self._asks[ask.id] = ask
        self.send(LoadAdapter(ask.id, name, folder))
        await stream.next()

    def abort(self, asks: Collection[Ask]) -> None:
        """Have the worker forget requests at once."""
        gone = [ask.id for ask in asks if self._asks.pop(ask.id, None) is not None]
        if gone and self._transport is not None:
            self._transport.write(frame(Abort(gone)))

    def lost(self, ask: Ask, reason: str) -> None:
        ask.stream.fail(WorkerLost(reason))

    def refused(self, ask: Ask, failed: Failed) -> None:
        ask.stream.fail(RequestFailed(failed), ask.id)

    def begun(self, ask: Ask) -> None: ...

    def ended(self, ask: Ask) -> None: ...

    def send(self, message: ToWorker) -> None:
        """Tell the worker something, if it is still there."""
        if self._transport is not None:
            self._transport.write(frame(message))

    def interrupt_all(self, make_reason: Callable[[], BaseException]) -> None:
        """Abort every request, and raise a reason in each task that waits for one."""
        for stream in {ask.stream for ask in self._asks.values()}:
            stream.interrupt(make_reason())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def give_up(self, reason: str) -> None:
        """Take the worker for lost, at once and whatever the connection says."""
        transport = self._transport
        self._lose(reason)
        if transport is not None:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but ancestry.
        self._transport = cast(asyncio.Transport, transport)
        watch_over(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        try:
            for payload in self._reader.feed(data):
                message = decode_to_gateway(payload)
                if type(message) is Step and self._trusted:
                    self._on_step(message)
                else:
                    self._on_rare(message)
        except LinkError as error:
            self._lose(f"the worker sent what is no message: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the worker's connection broke" if exc is None else f"the worker's connection broke: {exc}")

    def _on_step(self, step: Step) -> None:
        asks = self._asks
        for output in step.outputs:
            ask = asks.get(output.id)
            if ask is None:
                continue  # aborted: the worker sent this before it heard of it
            if output.finish is not None:
                del asks[output.id]
            ask.stream.put(ask, output)

    def _on_rare(self, message: ToGateway) -> None:
        if not self._trusted:
            self._identify(message)
            return
        match message:
            case Load():
                self.owner.on_load(message)
            case Failed():
                ask = self._asks.pop(message.id, None)
                if ask is not None:
                    ask.stream.refused(ask, message)
            case Blocks():
                self.owner.on_blocks(message)
            case Progress():
                self.owner.on_progress(message)
            case Hello():
                if message.protocol != PROTOCOL:
                    raise LinkError(f"it speaks protocol {message.protocol}, this gateway {PROTOCOL}")
                self.hello = message
                self.owner.on_hello(self, message)
            case Challenge():
                raise LinkError("it wants a proof, and this gateway has no secret: name it with --worker-secret-env")

    def _identify(self, message: ToGateway) -> None:
        """Prove to the worker that we know the secret, and look whether it does.

        Raises:
            LinkError: it doesn't, or says something else.
        """
        match message:
            case Challenge(nonce) if not self._nonce:
                self._workers_nonce, self._nonce = nonce, secrets.token_bytes(32)
                self.send(Proof(self._nonce, proof_of_gateway(self._secret, nonce, self._nonce)))
            case Welcome(proof) if self._nonce:
                if not hmac.compare_digest(proof, proof_of_worker(self._secret, self._workers_nonce, self._nonce)):
                    raise LinkError("it doesn't know the secret")
                self._trusted = True
            case _:
                raise LinkError("it speaks before it has proved that it knows the secret (--secret-env)")

    def _lose(self, reason: str) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.close()
        if not self._trusted and self._nonce:
            reason = f"{reason}; perhaps the secrets differ (--secret-env there, --worker-secret-env here)"
        asks = list(self._asks.values())
        self._asks.clear()
        self.owner.on_lost(self, reason)
        for ask in asks:
            ask.stream.lost(ask, reason)


async def connect(address: str, owner: LinkOwner, secret: bytes = b"", tls: ssl.SSLContext | None = None) -> WorkerLink:
    """Connect to the worker that listens on ``address``. The secret is for whatever asks for it, TLS for TCP only.

    Raises:
        OSError: nobody listens there (yet), or it has no certificate that we trust.
        ValueError: this is no address.
    """
    loop = asyncio.get_running_loop()
    _, where = parse_address(address)
    if isinstance(where, str):
        _, link = await loop.create_unix_connection(lambda: WorkerLink(owner, loop), where)
    else:
        _, link = await loop.create_connection(lambda: WorkerLink(owner, loop, secret, True), *where, ssl=tls)
    return link


def watch_over(sock: socket.socket | None) -> None:
    """Send at once what is to be sent, and notice within seconds when the other host has gone without a word."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": 15_000}.items():
        if hasattr(socket, name):  # Linux' names
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def int32_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as `Submit.tokens` wants them: little-endian int32."""
    words = array("i", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
