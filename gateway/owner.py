"""How does one of several gateway processes answer for what another one keeps?

Files, batches, stored responses, rollouts and shadows belong to the first process, their owner. The kernel spreads
connections over all of them, so the others send requests for those on to it, over a Unix socket, as they are, and bring
its answers back as they come. Nothing is stored on the way; a client that leaves leaves the owner, too.
"""

import asyncio
import re
from pathlib import Path
from typing import Any, Final

import httptools

from gateway.api.exchange import Exchange, Receive, Scope, Send
from gateway.api.inside import Application
from gateway.wire import errors, sse

_KEPT: Final = re.compile(r"/(?:v1/(?:files|batches|responses|feedback)|admin/(?:rollouts|shadows))(?:/|$)")
_HOP: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"expect", b"upgrade", b"te"})
_OURS: Final = _HOP | {b"date", b"server"}
_READ: Final = 1 << 16
_RETRY: Final = 1.0  # seconds after which an owner that died is started again


class ToOwner:
    """An application that sends on what its owner keeps, and leaves the rest to ``app``.

    ``path`` is that of the socket on which the owner listens.
    """

    def __init__(self, app: Application, path: Path) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _KEPT.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path))
        except OSError:
            await _unavailable(scope, receive, send)
            return
        asking = asyncio.create_task(_ask(scope, receive, writer))
        answering = asyncio.create_task(_answer(scope, reader, send))
        try:
            # Whichever ends first decides: the answer is there, or the client has gone.
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and not answering.result():
                await _unavailable(scope, receive, send)
        finally:
            asking.cancel()
            answering.cancel()
            writer.transport.abort()


async def _unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    await Exchange(scope, receive, send).fail(
        errors.unavailable("Files, responses, rollouts and shadows can't be reached.", _RETRY)
    )


async def _ask(scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> None:
    """Send a request on, and return when its client has gone."""
    headers = [(name, value) for name, value in scope["headers"] if name not in _HOP]
    named = {name for name, _ in scope["headers"]}
    chunked = b"transfer-encoding" in named
    query = scope.get("query_string", b"")
    target = scope.get("raw_path", scope["path"].encode()) + (b"?" + query if query else b"")
    lines = [f"{scope['method']} ".encode() + target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in headers]
    # Without "connection: close": the owner may answer before it has the body, and to write to one that has gone then
    # would lose what it said.
    lines += [b"transfer-encoding: chunked"] if chunked else []
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    more = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body = message.get("body", b"")
        if not more or writer.is_closing():
            continue  # the owner has answered without waiting for the rest
        more = message.get("more_body", False)
        if chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        writer.write(body)
        try:
            await writer.drain()
        except ConnectionError:
            more = False


class _Reply:
    """What httptools' parser tells of an answer."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.begun = self.complete = False
        self.body: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


async def _answer(scope: Scope, reader: asyncio.StreamReader, send: Send) -> bool:
    """Bring the owner's answer back; False: there was none. One that breaks off ends as it does for its own clients."""
    reply = _Reply()
    parser = httptools.HttpResponseParser(reply)
    started = False
    while not reply.complete:
        data = await _read(reader)
        if data:
            parser.feed_data(data)
        if reply.begun and not started:
            started = True
            headers = [(name, value) for name, value in reply.headers if name not in _OURS]
            await send({"type": "http.response.start", "status": parser.get_status_code(), "headers": headers})
            reply.complete |= scope["method"] == "HEAD"
        if not data:
            break
        if reply.body:
            await send({"type": "http.response.body", "body": b"".join(reply.body), "more_body": True})
            reply.body.clear()
    if started:
        await send(_last(reply))
    return started


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(_READ)
    except ConnectionError:
        return b""


def _last(reply: _Reply) -> dict[str, Any]:
    """An answer's last message; one that broke off says so if it is a stream, else its end is missing."""
    if reply.complete:
        return {"type": "http.response.body", "body": b"", "more_body": False}
    if any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in reply.headers):
        error = sse.error_event(errors.unavailable("The server was lost before the answer was complete.", _RETRY))
        return {"type": "http.response.body", "body": error, "more_body": False}
    return {"type": "http.response.body", "body": b"", "more_body": True}
