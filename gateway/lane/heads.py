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


def passed(headers: Headers) -> tuple[bytes, bytes, bytes, bytes]:
    """Sort a request's headers: the lines that go on, the client's key, the line it came in, and the client's id.

    The key is as ``Authorization`` has it; Anthropic's clients send it in ``x-api-key``. Its line goes on to targets
    that clients' keys are meant for. The id is empty where there is none that can stand in a header and a log line.
    """
    parts: list[bytes] = []
    authorization = key = request_id = b""
    for name, value in headers:
        if name not in _OWN_REQUEST:
            parts += (name, b": ", value, b"\r\n")
        elif name == b"authorization":
            authorization = value
            key = b"authorization: %b\r\n" % value
        elif name == b"x-request-id" and _REQUEST_ID(value):
            request_id = value
        elif name == b"x-api-key" and not key:
            authorization = b"Bearer " + value
            key = b"x-api-key: %b\r\n" % value
    return b"".join(parts), authorization, key, request_id


def response(
    status: int, headers: Headers, request_id: bytes, length: int | None = None, *, chunked: bool, keep_alive: bool
) -> bytes:
    """The head of an answer that a target gave. Without ``length``, chunks follow, or bytes until the end."""
    parts = [_STATUS[status]]
    for name, value in headers:
        if name not in _OWN_RESPONSE:
            parts += (name, b": ", value, b"\r\n")
    if length is not None:
        framing = b"content-length: %d\r\n" % length
    else:
        framing = b"transfer-encoding: chunked\r\n" if chunked else b""
    parts += (
        framing,
        b"x-request-id: ",
        request_id,
        b"\r\nx-penstock-variant: default\r\n\r\n"
        if keep_alive
        else b"\r\nx-penstock-variant: default\r\nconnection: close\r\n\r\n",
    )
    return b"".join(parts)


def error(fault: errors.ApiError, request_id: bytes, keep_alive: bool, body: bytes) -> bytes:
    """A whole answer that is an error, with its ``body``."""
    extra = dict(fault.headers)
    if not keep_alive:
        extra["connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items()).encode()
    head = _STATUS[fault.status] + b"content-type: application/json\r\n" + lines
    return b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (head, len(body), request_id, body)
