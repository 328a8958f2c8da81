"""Which headers go on to a target, and which come back? Those that concern one connection only stay behind."""

import re
from http import HTTPStatus
from typing import Final

from gateway.wire import errors

Headers = list[tuple[bytes, bytes]]

_OWN_REQUEST: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"te", b"trailer", b"upgrade",
     b"expect", b"accept-encoding", b"proxy-authorization", b"proxy-connection", b"authorization", b"x-api-key",
     b"x-request-id")
)  # fmt: skip
_OWN_RESPONSE: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"trailer", b"upgrade", b"server", b"date",
     b"proxy-authenticate", b"proxy-connection", b"x-request-id", b"x-penstock-variant")
)  # fmt: skip
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/=+@-]{1,128}").fullmatch
_PHRASES: Final = {int(status): status.phrase for status in HTTPStatus}
_STATUS: Final = {code: f"HTTP/1.1 {code} {_PHRASES.get(code, '')}\r\n".encode() for code in range(100, 600)}
_LAST: Final = b"\r\nx-penstock-variant: default\r\n\r\n"
_LAST_AND_CLOSE: Final = b"\r\nx-penstock-variant: default\r\nconnection: close\r\n\r\n"


class RequestHead:
    """A request's head, sorted out; it may be that of many requests of one connection.

    ``endpoint`` is its path. ``keep_alive`` and ``chunked`` tell what the client's HTTP can do; ``plain``, that nothing
    in it has to be answered before the body or changes what comes after it. ``lines`` go on to a target.
    ``authorization`` is the client's key as ``Authorization`` has it; Anthropic's clients send it in ``x-api-key``.
    The line that it came in, ``key``, goes on to targets that clients' keys are meant for. ``request_id`` is the
    client's; empty where there is none that can stand in a header and a log line.
    """

    __slots__ = ("authorization", "chunked", "endpoint", "keep_alive", "key", "lines", "plain", "request_id")

    def __init__(self, endpoint: str, headers: Headers, *, keep_alive: bool, chunked: bool) -> None:
        self.endpoint = endpoint
        self.keep_alive = keep_alive
        self.chunked = chunked
        self.plain = keep_alive and chunked
        self.authorization = self.key = self.request_id = b""
        parts: list[bytes] = []
        for name, value in headers:
            if name not in _OWN_REQUEST:
                parts += (name, b": ", value, b"\r\n")
            elif name == b"authorization":
                self.authorization = value
                self.key = b"authorization: %b\r\n" % value
            elif name == b"x-request-id" and _REQUEST_ID(value):
                self.request_id = value
            elif name == b"x-api-key" and not self.key:
                self.authorization = b"Bearer " + value
                self.key = b"x-api-key: %b\r\n" % value
            elif name in (b"expect", b"upgrade"):
                self.plain = False
        self.lines = b"".join(parts)


def answer_lines(status: int, headers: Headers) -> bytes:
    """The status line and headers of a target's answer, as far as they go on to clients."""
    parts = [_STATUS[status]]
    for name, value in headers:
        if name not in _OWN_RESPONSE:
            parts += (name, b": ", value, b"\r\n")
    return b"".join(parts)


def answer(lines: bytes, request_id: bytes, data: bytes, keep_alive: bool) -> bytes:
    """A whole answer: the `answer_lines` and the body."""
    last = _LAST if keep_alive else _LAST_AND_CLOSE
    return b"%bcontent-length: %d\r\nx-request-id: %b%b%b" % (lines, len(data), request_id, last, data)


def beginning(lines: bytes, request_id: bytes, *, chunked: bool, keep_alive: bool) -> bytes:
    """The head of an answer that comes in chunks, or goes on until the connection ends."""
    framing = b"transfer-encoding: chunked\r\n" if chunked else b""
    return b"%b%bx-request-id: %b%b" % (lines, framing, request_id, _LAST if keep_alive else _LAST_AND_CLOSE)


def error(fault: errors.ApiError, request_id: bytes, keep_alive: bool, body: bytes) -> bytes:
    """A whole answer that is an error, with its ``body``."""
    extra = dict(fault.headers)
    if not keep_alive:
        extra["connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items()).encode()
    head = _STATUS[fault.status] + b"content-type: application/json\r\n" + lines
    return b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (head, len(body), request_id, body)
