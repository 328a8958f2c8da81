"""An upstream that does what a test wants of it, on a real socket."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}


class Request(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Talk:
    """One request, and the ways to answer it."""

    def __init__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.writer = writer

    def reply(self, body: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        self.writer.write(f"HTTP/1.1 {status} X\r\n{head}content-length: {len(data)}\r\n\r\n".encode() + data)

    def begin_stream(self) -> None:
        self.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def event(self, text: str, **fields: Any) -> None:
        self.chunk(sse({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **fields}))

    def end_stream(self) -> None:
        self.chunk(sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        if self.request.json.get("stream_options"):
            self.chunk(sse({"choices": [], "usage": USAGE}))
        self.chunk(b"data: [DONE]\n\n")
        self.writer.write(b"0\r\n\r\n")

    def reset(self) -> None:
        """Break the connection off."""
        self.writer.transport.abort()


def sse(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"} | fields
                                  ).encode() + b"\n\n"  # fmt: skip


Script = Callable[[Talk], Awaitable[None]]


async def obliging(talk: Talk) -> None:
    """Answer as a server should: three words, streamed if wanted."""
    if not talk.request.json.get("stream"):
        message = {"role": "assistant", "content": "one two three"}
        talk.reply(
            {
                "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE,
            }
        )  # fmt: skip
        return
    talk.begin_stream()
    for word in ("one", " two", " three"):
        talk.event(word)
        await talk.writer.drain()
        await asyncio.sleep(0)
    talk.end_stream()


class Upstream:
    """``script`` answers POSTs; health and models are answered as they should be, unless ``healthy`` is taken away.

    ``requests`` are the POSTs that came; ``left`` is set when the gateway closed such a connection before its end.
    """

    def __init__(self, script: Script = obliging, *, models: tuple[str, ...] = ("m",), port: int = 0) -> None:
        self.script = script
        self.models = models
        self.port = port
        self.healthy = True
        self.silent = False
        self.page: bytes | None = None
        self.requests: list[Request] = []
        self.connections = 0
        self.accepted = 0
        self.left = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def model(self, name: str) -> dict[str, Any]:
        """What it says of one of its models."""
        return {"id": name, "object": "model"}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Go away: the port is closed and every connection broken off."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.accepted += 1
        try:
            while True:
                await self._answer(await _read(reader), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(request, writer)
        if self.silent:
            await asyncio.sleep(60)
        if request.line.startswith("GET"):
            if not self.healthy:
                talk.reply({}, 503)
            elif "/v1/models" in request.line:
                talk.reply({"object": "list", "data": [self.model(name) for name in self.models]})
            elif "/metrics" in request.line and self.page is not None:
                talk.reply(self.page, content_type="text/plain")
            elif "/metrics" in request.line:
                talk.reply({}, 404)
            else:
                talk.reply({})
            return
        self.requests.append(request)
        script = asyncio.create_task(_run(self.script, talk))
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({script, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not script.done():
                self.left.set()
                raise ConnectionResetError
            script.result()
        finally:
            script.cancel()
            gone.cancel()
            await asyncio.wait({gone})


async def _run(script: Script, talk: Talk) -> None:
    await script(talk)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head[0], headers, body)
