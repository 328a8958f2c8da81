"""How does one connection to an upstream ask and listen? HTTP/1.1 on `asyncio.Protocol`, parsed by httptools.

A connection carries one exchange at a time and is kept for the next. What arrives goes to a `Receiver` in the pieces in
which the kernel had it: bodies are taken out of their chunks and not looked at. An answer that comes in one piece, and
under the same head as the last one, is not parsed at all: see `gateway.wire.known_head`.
"""

import asyncio
import contextlib
import socket
import ssl
from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal, Protocol

import httptools

from gateway.wire.known_head import KnownHead

if TYPE_CHECKING:
    from gateway.fleet.upstream.target import Target

FaultKind = Literal["connect", "lost", "garbage", "timeout"]

_SMALL: Final = 8192
_MAX_HEAD: Final = 64 * 1024
_NO_BODY: Final = (204, 304)
# A peer that vanished without a word (its host lost power, a firewall forgot us) is found out after 30 s at most.
_KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


class Fault(Exception):
    """Why there is no answer, or no more of it. ``kind`` is where it happened, the message says what."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


class Receiver(Protocol):
    """Who sent a request on a connection, and gets what comes back."""

    def on_data(self, connection: "Connection", data: bytes, ended: bool) -> None:
        """More of the body; ``status`` and ``headers`` stand in the connection. ``data`` may be empty.

        With ``ended`` the answer is complete, and the connection isn't the receiver's any more.
        """

    def on_fault(self, connection: "Connection", fault: Fault) -> None:
        """There will be no (more) answer, and the connection is closed."""


class Connection(asyncio.Protocol):
    """A connection to ``target``, from before it is established until it is lost.

    ``status`` is 0 until a response's head is complete; ``headers`` may have the length of another answer's body;
    ``content_type`` is in lower case. ``framed`` tells whether the head says where the response ends, ``reused``
    whether the connection carried an exchange before, ``heard`` whether anything came since the request, ``paused``
    whether nothing is read because whoever gets the answer can't keep up.
    ``sent`` and ``last`` are when the request was sent and when something last came, by `perf_counter`.
    ``lines`` is what the receiver made of status and headers: kept as long as the same head comes again, else empty.

    Args:
        once: it is for one exchange, and closed after it.
    """

    __slots__ = (
        "_alive", "_connecting", "_ended", "_excess", "_head_bytes", "_known", "_once", "_parser", "_parts",
        "_receiver", "_status", "_stays", "_unsent", "content_type", "framed", "headers", "heard", "idle_since", "last",
        "lines", "paused", "reused", "sent", "status", "target", "ticket", "transport",
    )  # fmt: skip

    def __init__(self, target: "Target", *, once: bool = False) -> None:
        self.target = target
        self._once = once
        self.transport: asyncio.Transport | None = None
        self.ticket = 0  # placement's
        self.status = 0
        self.content_type = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.lines = b""
        self.reused = False
        self.heard = False
        self.paused = False
        self.sent = self.last = self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._known: KnownHead | None = None  # the head of the last answer, with `_status`; the parser is between two
        self._status = 0
        self._parts: list[bytes] = []
        self._receiver: Receiver | None = None
        self._unsent = b""
        self._connecting: asyncio.Task[None] | None = None
        self._alive = True
        self._ended = self._excess = self._stays = self.framed = False
        self._head_bytes = 0

    @property
    def usable(self) -> bool:
        """Whether it can carry another exchange."""
        return self._alive and self.transport is not None and not self.transport.is_closing()

    @property
    def established(self) -> bool:
        return self.transport is not None

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        """Send a request, now or as soon as the connection stands, and let ``receiver`` have what comes back."""
        self._receiver = receiver
        self.status = 0
        self.heard = False
        self._ended = self.framed = False
        self._head_bytes = 0
        self.sent = self.last = perf_counter()
        transport = self.transport
        if transport is None:
            self._unsent = head + body
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        elif len(body) < _SMALL:
            transport.write(head + body)
        else:
            transport.writelines((head, body))  # one system call as well, and no copy

    def close(self) -> None:
        """Close at once. Its receiver hears no more."""
        self._alive = False
        self._receiver = None
        self._unsent = b""
        if self.transport is not None:
            self.transport.abort()
        elif self._connecting is not None:
            self._connecting.cancel()

    def expire(self, fault: Fault) -> None:
        """Close at once, and tell the receiver why."""
        self._fail(fault)

    def pause(self, paused: bool) -> None:
        """Stop or go on reading: whoever gets the answer can't keep up, or can again."""
        if self.transport is not None and not self.transport.is_closing():
            self.paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.last = perf_counter()
                self.transport.resume_reading()

    async def _connect(self) -> None:
        address, options = self.target.address, self.target.options
        loop = asyncio.get_running_loop()
        context = self.target.tls
        try:
            async with asyncio.timeout(options.connect):
                await loop.create_connection(lambda: self, address.host, address.port, ssl=context)
        except TimeoutError:
            self._fail(Fault("connect", f"no connection within {options.connect:g} s"))
        except (OSError, ssl.SSLError) as error:
            self._fail(Fault("connect", error.strerror or str(error)))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._connecting = None
        if not self._alive:
            transport.abort()
            return
        _tell_kernel(transport.get_extra_info("socket"))
        transport.write(self._unsent)
        self._unsent = b""

    def connection_lost(self, error: Exception | None) -> None:
        self._alive = False
        del self._parser  # it holds on to this object: without it, nothing is left for the garbage collector
        self.target.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self.status and not self.framed and error is None:
            receiver.on_data(self, b"", True)  # HTTP/1.0: the end of the connection is the answer's
        else:
            receiver.on_fault(self, Fault("lost", str(error) if error else "the connection was closed"))

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self.last = perf_counter()
        known = self._known
        if known is not None:
            begin = known.begins(data)
            if begin and len(data) - begin == known.length and self._receiver is not None:
                self.status = self._status
                self.framed = True
                self._complete(self._receiver, data[begin:])
                return
            self._known = None
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        begins = not self.status and not self._head_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Fault("garbage", f"what came is no HTTP: {error}"))
            return
        receiver = self._receiver
        if receiver is None or self._excess:
            self._fail(Fault("garbage", "something came that nobody had asked for"))
            return
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD:
                self._fail(Fault("garbage", f"its head is larger than {_MAX_HEAD // 1024} KiB"))
            return
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if not self._ended:
            receiver.on_data(self, body, False)
            return
        if begins and self._stays and self.status not in _NO_BODY:
            self._known = KnownHead.learn(data, len(body))
            self._status = self.status
        self._complete(receiver, body)

    def _complete(self, receiver: Receiver, body: bytes) -> None:
        """The last of an answer: the connection is free for the next request."""
        self._receiver = None
        if self._alive and self._stays and not self._once:
            self.target.keep(self)
        else:
            self.close()
        receiver.on_data(self, body, True)

    # What httptools calls while it is fed.

    def on_message_begin(self) -> None:
        if self._ended or self._receiver is None:
            self._excess = True
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if not 100 <= status < 600 or status == 101:
            raise ValueError(f"status {status}")  # the parser says so in words of its own
        if status < 200:
            self.headers.clear()  # an interim answer, 100 or 103: the real one follows
            return
        self.status = status
        self.framed = status in _NO_BODY
        self.content_type = self.lines = b""
        for name, value in self.headers:
            if name == b"content-type":
                self.content_type = value.lower()
            elif name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
                self.framed = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self.status:
            self._ended = True
            self._stays = self._parser.should_keep_alive()  # afterwards the parser no longer knows

    def _fail(self, fault: Fault) -> None:
        receiver = self._receiver
        self.close()
        self.target.forget(self)
        if receiver is not None:
            receiver.on_fault(self, fault)


def _tell_kernel(sock: socket.socket | None) -> None:
    """Send at once, and find out when the other side is gone."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # it has just been reset: that will be heard soon enough
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):  # Linux's
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
