"""How are bytes from a client taken for HTTP? uvicorn's way, with bounds on a head and on patience, and errors as ours.

Requests that ask for another protocol (h2c, as Java's client does at first, or WebSockets) are answered in this one.
"""

from collections.abc import Iterable
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.wire import errors

MAX_HEAD: Final = 256 * 1024  # of request line and headers, in bytes, where they come in several pieces


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, except that a head has a limit, and that even what is no HTTP gets OpenAI's error object."""

    _in_head = False
    _head_bytes = 0
    _body_bytes = 0
    _awaited: object = None  # what was waited for at the last look, and since when
    _awaited_since = 0.0

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._take(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response(f"The request's head is larger than {MAX_HEAD // 1024} KiB.")

    def _take(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            self._take_without_upgrade(data[upgrade.args[0] :])

    def _take_without_upgrade(self, rest: bytes) -> None:
        """Take the request whose head has just come as if it hadn't asked for another protocol.

        httptools takes such a request for complete, and its body, ``rest``, for the other protocol: where that came a
        moment later, for the next request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("This server is no proxy.")
            return
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self._take(b"%b%b\r\n%b" % (head, b"".join(lines), rest))

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        body = errors.ApiError(400, msg, code="invalid_value").body
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()

    def look(self, now: float, patience: float) -> None:
        """Close the connection if what its client has to send hasn't come for ``patience`` seconds.

        That is a whole head, or more of a body. Nothing is noted while bytes come: this only compares what it sees with
        the last time, so that it must be called again and again.
        """
        awaited = self.awaited()
        if awaited != self._awaited:
            self._awaited, self._awaited_since = awaited, now
        elif awaited is not None and now - self._awaited_since > patience:
            self.transport.close()

    def awaited(self) -> tuple[int, ...] | None:
        """What the client has to send: numbers that change when it does; None where it has to send nothing."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and (not cycle.more_body or self.flow.read_paused):
            return None
        return id(cycle), self._body_bytes


def look_after(connections: Iterable[object], now: float, patience: float) -> None:
    """`look` at all of uvicorn's ``connections``."""
    for connection in list(connections):
        if isinstance(connection, HttpProtocol):
            connection.look(now, patience)
