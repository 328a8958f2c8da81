"""A gateway with the lane, on a real socket, in the same event loop as its upstreams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai
from uvicorn.server import ServerState

from gateway.api.context import Context
from gateway.app import App
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.fleet.upstream.target import Target
from gateway.lane.lanes import Lanes
from gateway.lane.placing import Placing
from gateway.lane.protocol import protocol
from gateway.lane.service import Passing
from gateway.server import http_config, listen
from gateway.traffic.keys import Keyring, plain_keys
from tests.gateway.harness import Answer, read_answer, request_bytes
from tests.gateway.lane.upstream import Upstream

CHAT = "/v1/chat/completions"

FAST: dict[str, Any] = {
    "connect": 0.5, "first_byte": 5.0, "idle": 5.0, "pause": 0.1, "slow_start": 0.0, "probe_every": 0.1,
    "probe_timeout": 0.3, "load_every": 0.0,
}  # fmt: skip


class Reached:
    """A gateway of a test, and how clients reach it on its ``port``."""

    def __init__(self, context: Context, port: int, state: ServerState) -> None:
        self.context = context
        self.port = port
        self.state = state
        self.url = f"http://127.0.0.1:{port}"

    def openai(self, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, body: bytes | dict[str, Any], path: str = CHAT, **headers: str) -> "Sent":
        reader, writer = await self.connect()
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        writer.write(request_bytes("POST", path, body, named))
        return Sent(reader, writer)

    async def post(self, body: bytes | dict[str, Any], path: str = CHAT, **headers: str) -> Answer:
        sent = await self.send(body, path, **headers)
        return await sent.answer()

    async def get(self, path: str, **headers: str) -> Answer:
        reader, writer = await self.connect()
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        writer.write(request_bytes("GET", path, b"", named))
        return await Sent(reader, writer).answer()

    def metric(self, line: str) -> float:
        for found in self.context.metrics.page().decode().splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


class Lane(Reached):
    """The gateway under test."""

    def __init__(self, context: Context, passing: Passing, lanes: Lanes, port: int, state: ServerState) -> None:
        super().__init__(context, port, state)
        self.lanes = lanes
        self.passing = passing

    @property
    def targets(self) -> list[Target]:
        return list(self.passing.targets)

    def target(self, upstream: Upstream) -> Target:
        return next(target for target in self.targets if target.address.port == upstream.port)


class Sent:
    """A request under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> Answer:
        try:
            return await read_answer(self.reader)
        finally:
            self.writer.close()

    async def answer_rest(self) -> bytes:
        """What is left of a stream in chunks."""
        rest = await self.reader.readuntil(b"0\r\n\r\n")
        self.leave()
        return rest

    def leave(self) -> None:
        self.writer.transport.abort()


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


@contextlib.asynccontextmanager
async def lane(
    *upstreams: Upstream | str,
    file: str | None = None,
    ready: bool = True,
    keys: Sequence[str] = (),
    max_body: int = 1 << 20,
    max_queue: int = 4096,
    models: frozenset[str] | None = None,
    placing: Placing | None = None,
    model: str | None = None,
    app: Any = None,
    here: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[Lane]:
    """A gateway in front of ``upstreams``; ``ready``: all of them have been found up.

    ``model`` is what they call theirs. Requests for the models ``here`` go to ``app``.
    """
    context = Context(max_queue=max_queue, max_body=max_body, keys=Keyring(plain_keys(keys)))
    urls = [one if isinstance(one, str) else one.url for one in upstreams]
    passing = Passing(
        context, urls, file, UpstreamOptions(**FAST | options), models=models, placing=placing, model=model
    )
    lanes = Lanes(context)
    lanes.lead({}, passing.lane, choosing=bool(here))
    context.awaited = here
    make = protocol(lanes)
    config = http_config(app or App(context), make)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        server = await loop.create_server(lambda: make(config=config, server_state=state, app_state={}), sock=listener)
        watch = asyncio.gather(passing.run(), lanes.tick())
        try:
            if ready:
                await until(lambda: len(passing.targets) >= len(urls) and all(one.up for one in passing.targets))
            yield Lane(context, passing, lanes, listener.getsockname()[1], state)
        finally:
            server.close()
            for connection in list(state.connections):
                connection.shutdown()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            passing.close()
            assert context.in_flight == 0 or state.connections, "a request was forgotten"


async def until(condition: Any, timeout: float = 5.0) -> None:
    """Wait for ``condition()``.

    Raises:
        TimeoutError: it does not come true.
    """
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.002)
