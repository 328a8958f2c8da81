"""How does a handler read one request and write its answer? Bytes in, bytes out, straight on ASGI.

There is no Request and no Response object: headers are looked at once, and a streamed chunk is one ``send``.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from gateway.telemetry.lines import about
from gateway.telemetry.metrics import Outcome, outcome_of
from gateway.traffic.keys import ANYBODY
from gateway.traffic.limits.limiter import Tab
from gateway.traffic.variants import SESSION
from gateway.wire import errors, sse

if TYPE_CHECKING:
    from gateway.fleet.served_model import ServedModel
    from gateway.record.recording import Recording

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream; charset=utf-8"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/=+@-]{1,128}")
# After an early answer the rest of a body is read and dropped for this long: closing at once would reset the
# connection, and the client would never see the answer.
_LINGER: Final = 1.0


class ClientGone(Exception):
    """The client left before its answer was complete; nobody is there to be told."""


class Observer(Protocol):
    """Who wants to know what goes to a client."""

    def first(self, *, streamed: bool, token: bool) -> None:
        """The first of an answer is there, or (``token``) its first token is known to be; may be called again."""

    def add(self, data: bytes) -> None:
        """More of the answer's body is on its way."""


class Exchange:
    """One request and its answer.

    ``background`` is work that nobody waits for, such as a line of a batch, and ``behalf`` the id of the key that it is
    done for, if it is done for one. ``fault_body`` and ``fault_events`` say how an error is written before an answer
    has begun, and in the middle of a stream: OpenAI's way, unless the endpoint has another. ``headers`` are those that
    the endpoint adds to its answer. ``key`` is whose request it is, ``model`` what the metrics count it under,
    ``status`` the answer's status (0 before there is one), ``params`` what the path's parameters stand for. ``sent``
    are the request's headers, ``session`` what they say it is part of. ``served`` is the model that is to answer where
    a route has chosen it, ``variant`` what the answer calls it, ``only`` the target that a request from within is for.
    ``tab`` is what it has of its key's limits, ``outcome`` what has become of an answer that ended without an exception
    but not well. ``uncertainty`` is the mean surprisal of the answer's tokens, where it is known. ``recording`` is the
    record that is made of the request, if there is one.
    """

    __slots__ = (
        "_body",
        "_content_length",
        "_events",
        "_receive",
        "_send",
        "_state",
        "authorization",
        "background",
        "behalf",
        "complete",
        "content_type",
        "fault_body",
        "fault_events",
        "headers",
        "key",
        "method",
        "model",
        "observer",
        "only",
        "outcome",
        "params",
        "path",
        "query",
        "recording",
        "request_id",
        "sent",
        "served",
        "session",
        "status",
        "tab",
        "uncertainty",
        "variant",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.params: Mapping[str, str] = {}
        self._receive = receive
        self._send = send
        self.model = ""
        self.key = ANYBODY
        self.status = 0
        self.complete = False
        self.outcome: Outcome | None = None
        self.tab = Tab()
        self._state = state = scope.get("state", {})
        self.background = bool(state.get("background"))
        self.behalf: str = state.get("key", "")
        self.only: str = state.get("only", "")
        self.sent: list[tuple[bytes, bytes]] = scope["headers"]
        self.served: ServedModel | None = None
        self.variant = b"default"
        self.observer: Observer | None = None
        self.recording: Recording | None = None
        self.uncertainty: float | None = None
        self._body: bytes | None = None
        self._events = False  # the answer is a stream of them
        self.fault_body: Callable[[errors.ApiError], bytes] = _error_body
        self.fault_events: Callable[[errors.ApiError], bytes] = sse.error_event
        self.headers: list[tuple[bytes, bytes]] = []
        self._content_length: int | None = None
        self.content_type = self.authorization = b""
        self.session = ""
        request_id = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"content-length" and value.isdigit():
                self._content_length = int(value)
            elif name == b"authorization":
                self.authorization = value
            elif name == b"x-api-key":  # Anthropic's way
                self.authorization = b"Bearer " + value
            elif name == b"content-type":
                self.content_type = value
            elif name == SESSION:
                self.session = value.decode("latin-1")
        self.request_id = (
            request_id.decode("ascii") if _REQUEST_ID.fullmatch(request_id) else f"req-{secrets.token_hex(12)}"
        )

    @property
    def about(self) -> dict[str, str]:
        """Which request it is, for a log line's ``extra``."""
        return about(self.request_id, self.recording.trace.trace_id if self.recording is not None else "")

    async def body(self, limit: int) -> bytes:
        """The whole body, or what has been put in its place.

        Raises:
            ApiError: 413, the body has more than ``limit`` bytes. It isn't read any further then.
            ClientGone: the client left before it was complete.
        """
        if self._body is None:
            parts = [part async for part in self.parts(limit)]
            self._body = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._body

    def replace_body(self, body: bytes) -> None:
        """Let handlers read this body."""
        self._body = body

    async def parts(self, limit: int) -> AsyncIterator[bytes]:
        """The body in the pieces that it comes in, for bodies that memory has no room for.

        Raises:
            ApiError: 413, the body has more than ``limit`` bytes. It isn't read any further then.
            ClientGone: the client left before it was complete.
        """
        size = self._content_length
        if size is not None and size > limit:
            raise errors.request_too_large(limit, size)
        total = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            total += len(part)
            if total > limit:
                raise errors.request_too_large(limit)
            yield part
            more = message.get("more_body", False)

    async def gone(self) -> None:
        """Return once the client has left. Only after `body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def first(self, *, streamed: bool, token: bool = False) -> None:
        """The first of the answer is there, or (``token``) its first token, whether it is sent at once or not."""
        if self.recording is not None and streamed:
            self.recording.record.stream = True
        if self.observer is not None:
            self.observer.first(streamed=streamed, token=token)

    async def reply(
        self, status: int, body: bytes, *, content_type: bytes = _JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with ``body``, whole."""
        await self._start(status, content_type, len(body), headers)
        self.complete = True
        await self._send_body(body, "ok" if status < 400 else outcome_of(status))

    async def start_stream(self) -> None:
        """Begin an answer in server-sent events; `send` and `end` follow."""
        self._events = True
        await self._start(200, _EVENTS, None, None)

    async def start_download(self, size: int, content_type: bytes, headers: Mapping[str, str]) -> None:
        """Begin an answer of ``size`` bytes; `send` and `end` follow."""
        await self._start(200, content_type, size, headers)

    async def send(self, events: bytes) -> None:
        """Send events of a streamed answer. Waits while the client reads too slowly."""
        await self._send_body(events)

    async def end(self, events: bytes, outcome: Outcome = "ok") -> None:
        """Send the last events of a streamed answer, which ends well or otherwise."""
        self.complete = True
        self.outcome = outcome
        await self._send_body(events, outcome)

    async def relay(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin an answer that somebody else has made, with its own headers; `send` and `end` follow."""
        self.status = status
        if status < 300:
            kinds = [value for name, value in headers if name == b"content-type"]
            self._events = bool(kinds) and kinds[0].startswith(b"text/event-stream")
            self.first(streamed=self._events)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def fail(self, error: errors.ApiError) -> None:
        """Tell the client that there is no answer, or, within a stream, no more of it.

        Any other answer that has begun is left as it is: its connection is broken off then, so that the client sees it.
        """
        if self.complete:
            return
        self._state["fault"] = error  # who asks from within wants to know
        if self.recording is not None:
            self.recording.failed(error)
        if self.status:
            if self._events:
                await self.end(self.fault_events(error), "failed")
            return
        body = self.fault_body(error)
        if error.status == 413:
            await self._start(413, _JSON, len(body), error.headers)
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._drop_body()
            self.complete = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self.reply(error.status, body, headers=error.headers)

    async def _start(
        self, status: int, content_type: bytes, length: int | None, extra: Mapping[str, str] | None
    ) -> None:
        headers = [
            (b"content-type", content_type),
            (b"x-request-id", self.request_id.encode()),
            (b"x-penstock-variant", self.variant),
            *self.headers,
        ]
        if length is None:
            headers.append((b"cache-control", b"no-cache"))
        else:
            headers.append((b"content-length", b"%d" % length))
        if extra:
            headers.extend((name.encode(), value.encode()) for name, value in extra.items())
        self.status = status
        if status < 300:
            self.first(streamed=length is None)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send_body(self, data: bytes, outcome: Outcome | None = None) -> None:
        """Send more of the body, or (with an ``outcome``) the last of it, once the request is on the record."""
        if self.observer is not None:
            self.observer.add(data)
        if self.recording is not None:
            self.recording.add(data)
            if outcome is not None:
                await self.recording.finish(self.status, outcome, self.variant)
        await self._send({"type": "http.response.body", "body": data, "more_body": outcome is None})

    async def _drop_body(self) -> None:
        try:
            async with asyncio.timeout(_LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            return


def _error_body(error: errors.ApiError) -> bytes:
    return error.body
