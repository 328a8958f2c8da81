"""How are thousands of streamed answers read on one core? A bare HTTP/1.1 client: asyncio protocols, httptools, a pool.

A piece of an answer costs one callback: the time is noted as it is read from the socket, and the body handed on. There
is no HTTP/2, no redirect and no proxy; connections are kept alive and used again, the latest first.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

_CONNECT_ERRORS = (OSError, ssl.SSLError)
_LIMIT_OF_ADDRESSES = 16
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux only


class UrlError(ValueError):
    """Not a URL that can be asked; the message says what is."""


class Lost(ConnectionError):
    """No answer, since the connection ended or what came was not HTTP."""


class Target(NamedTuple):
    """Where to ask. ``prefix`` is the path before ``/chat/completions``; ``host`` as the Host header has it."""

    scheme: str
    host: str
    name: str
    port: int
    prefix: str


class Reply(NamedTuple):
    """What is known of an answer beside its body; ``whole`` is False where the connection ended within it."""

    status: int
    content_type: str
    whole: bool


Feed = Callable[[bytes, float], None]
"""Takes a piece of a body, and when it was read (`time.monotonic`, seconds)."""


def parse_url(url: str) -> Target:
    """An endpoint's URL, with or without ``/v1``, taken apart.

    Raises:
        UrlError: it is none of http or https, or has no host.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlError(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UrlError(f"{url!r} is no URL of an endpoint: write http://HOST:PORT or https://HOST")
    path = parts.path.rstrip("/")
    prefix = path if path.endswith("/v1") else f"{path}/v1"
    host = parts.netloc.rpartition("@")[2]
    return Target(parts.scheme, host, parts.hostname, port or (443 if parts.scheme == "https" else 80), prefix)


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time. ``used`` tells whether an answer has come over it before.

    With ``quick`` every segment is acknowledged at once: a server that leaves Nagle's algorithm on holds a small piece
    back until the one before is, which otherwise takes up to 40 ms.
    """

    def __init__(self, quick: bool = False) -> None:
        self.open = False
        self.used = False
        self._quick = quick
        self._socket: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._status = 0
        self._content_type = b""
        self._feed: Feed | None = None
        self._reply: asyncio.Future[Reply] | None = None

    def send(self, request: bytes, feed: Feed) -> "asyncio.Future[Reply]":
        """Write a request; the future has the reply when its body has gone to ``feed``.

        The future raises `Lost` when the connection ends before any reply.
        """
        assert self._transport is not None
        self._feed, self._status, self._content_type = feed, 0, b""
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._reply

    def close(self) -> None:
        """Drop the connection at once, whatever is under way."""
        self.open, self._feed, self._reply = False, None, None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast(asyncio.Transport, transport), True  # uvloop's is one in all but name
        plain = transport.get_extra_info("socket")
        if plain is not None:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._quick and _QUICKACK is not None:
                self._socket = plain
                plain.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        if self._socket is not None:
            assert _QUICKACK is not None
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)  # the kernel forgets it, time and again
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"what came is not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error) if error else "the endpoint closed the connection")

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._feed is not None:
            self._feed(body, self._now)

    def on_message_complete(self) -> None:
        if self._status >= 200:  # what is below is not the answer yet
            self.used = True
            self.open = self.open and self._parser.should_keep_alive()
            self._settle(whole=True)

    def _end(self, why: str) -> None:
        reply, self.open = self._reply, False
        if self._status >= 200:
            self._settle(whole=False)
        elif reply is not None and not reply.done():
            reply.set_exception(Lost(why))
        self.close()

    def _settle(self, whole: bool) -> None:
        reply, self._feed, self._reply = self._reply, None, None
        if reply is not None and not reply.done():
            reply.set_result(Reply(self._status, self._content_type.decode("latin-1"), whole))


class Pool:
    """Connections to one target. The name is looked up once, so that a run asks the same machines throughout.

    ``quick``: as `Connection` has it.
    """

    def __init__(self, target: Target, quick: bool = False) -> None:
        self.target = target
        self._quick = quick
        self._idle: list[Connection] = []
        self._addresses: list[tuple[str, int]] = []
        self._next = 0
        self._ssl = ssl.create_default_context() if target.scheme == "https" else None

    async def take(self) -> Connection:
        """An idle connection, or else a new one.

        Raises:
            Lost: none can be made.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return await self.connect()

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            Lost: none can be made.
        """
        loop = asyncio.get_running_loop()
        try:
            if not self._addresses:
                found = await loop.getaddrinfo(self.target.name, self.target.port, type=socket.SOCK_STREAM)
                self._addresses = list(dict.fromkeys((str(one[4][0]), int(one[4][1])) for one in found))
            last: Exception | None = None
            for _ in range(min(len(self._addresses), _LIMIT_OF_ADDRESSES)):
                host, port = self._addresses[self._next % len(self._addresses)]
                name = self.target.name if self._ssl else None
                try:
                    _, made = await loop.create_connection(
                        partial(Connection, self._quick), host, port, ssl=self._ssl, server_hostname=name
                    )
                    self._next += 1
                    return made
                except _CONNECT_ERRORS as error:
                    last = error
                    self._next += 1
            raise last or OSError("the name has no address")
        except _CONNECT_ERRORS as error:
            raise Lost(f"no connection to {self.target.host}: {error.strerror or error}") from None

    def give(self, connection: Connection) -> None:
        """Take a connection back that no exchange is using."""
        if connection.open:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def head(target: Target, method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """A request's head, but for Content-Length and the empty line.

    Raises:
        UrlError: a header's name or value holds what a header can't.
    """
    lines = {"host": target.host, "user-agent": "penstock-bench", **{k.lower(): v for k, v in headers.items()}}
    for name, value in lines.items():
        if not name or set(name + value) & set("\r\n\0") or set(name) & set(" :"):
            raise UrlError(f"{name!r} can't be a header with this value: write NAME: VALUE on one line")
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target.prefix}{path} HTTP/1.1\r\n{text}".encode("latin-1", "replace")
