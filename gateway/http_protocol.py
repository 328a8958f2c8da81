"""How are bytes from a client taken for HTTP? uvicorn's way, with a bound on a head, and errors as ours."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.wire import errors

MAX_HEAD: Final = 256 * 1024  # of request line and headers, in bytes, where they come in several pieces


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, except that a head has a limit, and that even what is no HTTP gets OpenAI's error object."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response(f"The request's head is larger than {MAX_HEAD // 1024} KiB.")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        body = errors.ApiError(400, msg, code="invalid_value").body
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()
