"""Which headers go on to a target, and which come back? Those that concern one connection only stay behind."""

import re
from http import HTTPStatus
from typing import Final

from gateway.telemetry.trace import NAMES, NOTHING, carried
from gateway.traffic.variants import SESSION
from gateway.wire import errors

Headers = list[tuple[bytes, bytes]]

_OWN_REQUEST: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"te", b"trailer", b"upgrade",
     b"expect", b"accept-encoding", b"proxy-authorization", b"proxy-connection", b"authorization", b"x-api-key",
     b"x-request-id", b"x-penstock-variant", *NAMES)
)  # fmt: skip
_OWN_RESPONSE: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"trailer", b"upgrade", b"server", b"date",
     b"proxy-authenticate", b"proxy-connection", b"x-request-id", b"x-penstock-variant")
)  # fmt: skip
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/=+@-]{1,128}").fullmatch
_PHRASES: Final = {int(status): status.phrase for status in HTTPStatus}
_STATUS: Final = {code: f"HTTP/1.1 {code} {_PHRASES.get(code, '')}\r\n".encode() for code in range(100, 600)}
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
_CLOSE: Final = b"connection: close\r\n"
DEFAULT: Final = b"default"
"""The variant of a model that has no others."""


class RequestHead:
    """A request's head, sorted out; it may be that of many requests of one connection.

    ``endpoint`` is its path. ``keep_alive`` and ``chunked`` tell what the client's HTTP can do; ``plain``, that nothing
    in it has to be answered before the body or changes what comes after it. ``lines`` go on to a target.
    ``authorization`` is the client's key as ``Authorization`` has it; Anthropic's clients send it in ``x-api-key``.
    The line that it came in, ``key``, goes on to targets that clients' keys are meant for. ``request_id`` is the
    client's; empty where there is none that can stand in a header and a log line. ``variant`` is the one that it names
    itself, if it does, and ``session`` what it says that it is part of. ``carried`` is what it says of its trace; the
    lines that it came in, ``trace``, go on to targets unless we put ourselves into the trace.
    """

    __slots__ = (
        "authorization", "carried", "chunked", "endpoint", "headers", "keep_alive", "key", "lines", "plain",
        "request_id", "session", "trace", "variant",
    )  # fmt: skip

    def __init__(self, endpoint: str, headers: Headers, *, keep_alive: bool, chunked: bool) -> None:
        self.endpoint = endpoint
        self.headers = headers
        self.variant = self.session = ""
        self.keep_alive = keep_alive
        self.chunked = chunked
        self.plain = keep_alive and chunked
        self.authorization = self.key = self.request_id = self.trace = b""
        self.carried = NOTHING
        parts: list[bytes] = []
        for name, value in headers:
            if name not in _OWN_REQUEST:
                parts += (name, b": ", value, b"\r\n")
                if name == SESSION:
                    self.session = value.decode("latin-1")
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
            elif name == b"x-penstock-variant":
                self.variant = value.decode("latin-1")
            elif name in NAMES:
                self.trace += b"%b: %b\r\n" % (name, value)
        if self.trace:
            self.carried = carried(headers)
        self.lines = b"".join(parts)


def answer_lines(status: int, headers: Headers) -> bytes:
    """The status line and headers of a target's answer, as far as they go on to clients."""
    parts = [_STATUS[status]]
    for name, value in headers:
        if name not in _OWN_RESPONSE:
            parts += (name, b": ", value, b"\r\n")
    return b"".join(parts)


def answer(lines: bytes, request_id: bytes, variant: bytes, data: bytes, keep_alive: bool) -> bytes:
    """A whole answer: the `answer_lines` and the body."""
    return b"%bcontent-length: %d\r\nx-request-id: %b\r\nx-penstock-variant: %b\r\n%b\r\n%b" % (
        lines, len(data), request_id, variant, b"" if keep_alive else _CLOSE, data,
    )  # fmt: skip


def beginning(lines: bytes, request_id: bytes, variant: bytes, *, chunked: bool, keep_alive: bool) -> bytes:
    """The head of an answer that comes in chunks, or goes on until the connection ends."""
    return b"%b%bx-request-id: %b\r\nx-penstock-variant: %b\r\n%b\r\n" % (
        lines, _CHUNKED if chunked else b"", request_id, variant, b"" if keep_alive else _CLOSE,
    )  # fmt: skip


def error(fault: errors.ApiError, request_id: bytes, variant: bytes, keep_alive: bool, body: bytes) -> bytes:
    """A whole answer that is an error, with its ``body``."""
    extra = {"x-penstock-variant": variant.decode(), **fault.headers}
    if not keep_alive:
        extra["connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items()).encode()
    head = _STATUS[fault.status] + b"content-type: application/json\r\n" + lines
    return b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (head, len(body), request_id, body)
