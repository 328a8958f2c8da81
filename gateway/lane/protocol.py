"""Which requests take the fast lane? A client's connection: what passes through is taken out before ASGI begins.

Requests of one connection are answered in their order, whichever way they take: one that comes before the answer to
the one before it is complete (pipelining) waits in uvicorn's own queue.

A request under the same head as the one before it isn't parsed again (`gateway.wire.known_head`).
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from gateway.http_protocol import HttpProtocol
from gateway.lane.endpoints import ENDPOINTS
from gateway.lane.exchange import Exchange
from gateway.lane.heads import RequestHead
from gateway.lane.lanes import Lanes
from gateway.wire import errors
from gateway.wire.known_head import KnownHead

_LINGER: Final = 1.0  # seconds; an early answer must be read before the connection is closed


class LaneProtocol(HttpProtocol):
    """uvicorn's protocol with the lane in it."""

    def __init__(self, lanes: Lanes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lanes = lanes
        self._incoming: Exchange | None = None
        self._running: Exchange | None = None
        self._discarding = self._discarded = False  # a body that is too large; all of it has come
        self._answers = 0
        self._fed = b""  # what httptools is being fed, if it began between two messages
        self._between = True
        self._known: KnownHead | None = None  # the last request's head, as it came and as it was understood
        self._known_as: RequestHead
        self._missing = 0  # bytes of a body under a known head

    # uvicorn's events

    def connection_lost(self, exc: Exception | None) -> None:
        self._incoming = self._known = None
        self._missing = 0
        running, self._running = self._running, None
        super().connection_lost(exc)
        if running is not None:
            running.abandon()

    def shutdown(self) -> None:
        if self._running is not None:
            self._running.close_after()
        elif self._incoming is None:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._running is not None:
            self._running.pause(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._running is not None:
            self._running.pause(False)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._take_more(data)
            return
        known = self._known
        if known is not None:
            if self._running is None and self.timeout_keep_alive_task is None and (begin := known.begins(data)):
                missing = known.length - (len(data) - begin)
                if missing >= 0 and known.length <= self._lanes.context.max_body:
                    self._take_known(data[begin:], missing)
                    return
            self._known = None
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._fed = data if self._between else b""
        self._feed(data)
        self._fed = b""

    def _feed(self, data: bytes) -> None:
        if self._in_head or self.timeout_keep_alive_task is not None:
            super().data_received(data)  # the rare case: a head in pieces, or after an answer of uvicorn's
            return
        self._take(data)
        self._head_bytes = len(data)  # of a head, if this ends within one

    # Requests under a known head

    def _take_known(self, body: bytes, missing: int) -> None:
        """A request whose ``body`` has come but for the last ``missing`` bytes."""
        exchange = Exchange(self._lanes, self, self._known_as)
        exchange.take(body)
        if missing:
            self._incoming, self._missing = exchange, missing
        else:
            self._start_known(exchange)

    def _take_more(self, data: bytes) -> None:
        """More of a body, and perhaps the next request's beginning."""
        exchange, missing = self._incoming, self._missing
        assert exchange is not None
        exchange.take(data if len(data) <= missing else data[:missing])
        if len(data) < missing:
            self._missing = missing - len(data)
            return
        self._missing = 0
        self._incoming = None
        self._start_known(exchange)
        if len(data) > missing:
            self.data_received(data[missing:])

    def _start_known(self, exchange: Exchange) -> None:
        known = self._known
        passing = self._lanes.pick(exchange) if self._lanes.choosing else exchange
        if passing is not None:
            self._running = passing
            passing.start()
        elif known is not None:
            self._known = None
            self._parse(known.head(exchange.size) + exchange.body)

    # httptools' events

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._between = False
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it will be, once more, without
        endpoint = _ENDPOINTS.get(self.url)
        if endpoint is None or self.parser.get_method() != b"POST" or not self._lanes:
            self._to_asgi(self.headers)
            return
        self._in_head = False
        keep_alive, chunked = self.parser.should_keep_alive(), self.parser.get_http_version() != "1.0"
        head = RequestHead(endpoint, self.headers, keep_alive=keep_alive, chunked=chunked)
        self._incoming = Exchange(self._lanes, self, head)
        if (b"expect", b"100-continue") in self.headers:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        incoming = self._incoming
        if incoming is None:
            if not self._discarding:
                super().on_body(body)
        elif not incoming.take(body):
            self._too_large(incoming)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        incoming = self._incoming
        self._between = True
        if incoming is None:
            if self._discarding:
                self._discarded = True
                if self._running is None:
                    self.transport.close()
            else:
                super().on_message_complete()
            return
        self._incoming = None
        passing = self._lanes.pick(incoming) if self._lanes.choosing else incoming
        if passing is None:
            # It has been told to go on, if it had asked.
            self._to_asgi([header for header in self.headers if header[0] != b"expect"])
            super().on_body(incoming.body)
            super().on_message_complete()
            return
        if self._running is not None or (self.cycle is not None and not self.cycle.response_complete):
            self.flow.pause_reading()
            self.pipeline.appendleft((passing, None))  # type: ignore[arg-type]
        else:
            if passing.head.plain:
                self._known, self._known_as = KnownHead.learn(self._fed, passing.size), passing.head
            self._running = passing
            passing.start()

    def _to_asgi(self, headers: list[tuple[bytes, bytes]]) -> None:
        """The request isn't for the lane: tell uvicorn what it hasn't heard of it yet."""
        url = self.url
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            self._running = cycle
            cycle.start()
        elif self._running is not None:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _too_large(self, exchange: Exchange) -> None:
        self._incoming = None
        self._discarding = True
        self._running = exchange
        exchange.refuse(errors.request_too_large(self._lanes.context.max_body))

    # What an exchange calls

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def done(self, close: bool) -> None:
        self._running = None
        self._answers += 1
        if self._discarded:
            self.transport.close()
        elif self._discarding:
            asyncio.get_running_loop().call_later(_LINGER, self.transport.close)
        elif close:
            self.transport.close()
        elif self.pipeline or self.flow.read_paused:
            self.on_response_complete()

    def abort(self) -> None:
        self._running = None
        self.transport.abort()

    def awaited(self) -> tuple[int, ...] | None:
        if self._running is not None:
            return None
        if self._incoming is not None:
            return id(self._incoming), self._incoming.size
        found = super().awaited()
        return (*found, self._answers) if found is not None else None


_ENDPOINTS: Final[dict[bytes, str]] = {path.encode(): path for path in ENDPOINTS}


def protocol(lanes: Lanes) -> Callable[..., LaneProtocol]:
    """What uvicorn makes for each connection."""

    def make(*args: Any, **options: Any) -> LaneProtocol:
        return LaneProtocol(lanes, *args, **options)

    return make
