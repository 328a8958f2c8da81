"""What is the least that a proxy in Python costs? One on `asyncio.Protocol` and httptools that only passes on.

It knows one upstream, keeps its connections, and neither looks at a body nor counts, checks, places or times anything:
the measure of what all that costs in the lane. ``python -m bench.lane.bare PORT UPSTREAM_PORT``.
"""

import asyncio
import socket
import sys
from typing import Any

import httptools
import uvloop

_HEAD = b"POST %b HTTP/1.1\r\nhost: upstream\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class _Upstream(asyncio.Protocol):
    """A connection to the upstream; what comes goes to ``client`` as it is."""

    def __init__(self, idle: list["_Upstream"]) -> None:
        self.client: _Client | None = None
        self.transport: Any = None
        self._idle = idle
        self._parser = httptools.HttpResponseParser(self)
        self._ended = False

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self.client is not None:
            self.client.transport.write(data)
        if self._ended:
            self._ended = False
            self.client = None
            self._idle.append(self)

    def on_message_complete(self) -> None:
        self._ended = True


class _Client(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, idle: list[_Upstream], port: int) -> None:
        self.transport: Any = None
        self._idle = idle
        self._port = port
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        request = _HEAD % (self._url, len(body)) + body
        if self._idle:
            upstream = self._idle.pop()
            upstream.client = self
            upstream.transport.write(request)
        else:
            task = asyncio.get_running_loop().create_task(self._connect(request))
            task.add_done_callback(lambda done: done.result())

    async def _connect(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: _Upstream(self._idle), "127.0.0.1", self._port)
        upstream.client = self
        upstream.transport.write(request)


async def serve(port: int, upstream_port: int) -> None:
    """Serve until killed."""
    idle: list[_Upstream] = []
    server = await asyncio.get_running_loop().create_server(lambda: _Client(idle, upstream_port), "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
