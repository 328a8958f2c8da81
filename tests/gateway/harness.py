"""A gateway on a real socket with a fake worker behind it, all in one event loop."""

import asyncio
import contextlib
import json
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import openai
import uvloop
from uvicorn.server import ServerState

from gateway.api.context import Context
from gateway.app import App
from gateway.fleet.fleet import Fleet
from gateway.fleet.roster import Roster
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker import Worker
from gateway.http_protocol import HttpProtocol
from gateway.server import http_config, listen
from gateway.telemetry.metrics import Metrics
from tests.gateway.fake_worker import FakeWorker

T = TypeVar("T")

TIMEOUT = 20.0  # of a whole scenario: only a hang takes that long


def run(scenario: Coroutine[Any, Any, T], timeout: float = TIMEOUT) -> T:
    """Run a scenario in an event loop as the product's own, for at most ``timeout`` seconds."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout):
            return await scenario

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


class Answer(NamedTuple):
    """What came back on a connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """What each server-sent event has for data; the name of a named one goes before it, with a colon."""
        out = []
        for block in self.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if line)
            if fields:
                name = fields.get("event")
                out.append(f"{name}: {fields['data']}" if name else fields["data"])
        return out


class Gateway:
    """The gateway under test."""

    def __init__(self, context: Context, worker: FakeWorker, port: int, connections: set[Any]) -> None:
        self.connections = connections
        self.context = context
        self.worker = worker
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def fleet_worker(self) -> Worker:
        """What the gateway knows of the worker."""
        return self.model.fleet.workers["w0"]

    @property
    def model(self) -> ServedModel:
        return self.context.models["fake"]

    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def request(
        self, method: str, path: str, body: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(request_bytes(method, path, body, {"connection": "close", **(headers or {})}))
        try:
            return await read_answer(reader)
        finally:
            writer.close()

    async def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> Answer:
        return await self.request("POST", path, body, {name.replace("_", "-"): text for name, text in headers.items()})

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def metric(self, line: str) -> float:
        """The value of a sample on the metrics page; 0 where there is none."""
        for found in self.context.metrics.page().decode().splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def request_bytes(method: str, path: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    sent = headers or {}
    if data and "content-length" not in sent and "transfer-encoding" not in sent:
        lines.append(f"content-length: {len(data)}")
    lines += [f"{name}: {value}" for name, value in sent.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    return Answer(int(head[0].split()[1]), headers, body)


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    max_queue: int = 4096,
    max_body: int = 1 << 20,
    loaded: bool = True,
    patience: float = 0.05,
    **fake: Any,
) -> AsyncIterator[Gateway]:
    """A gateway with a `FakeWorker` made with ``fake``. Not ``loaded``: as it is before the worker's `Hello`.

    For ``patience`` seconds requests wait for a worker that has gone.
    """
    metrics = Metrics()
    context = Context(max_queue=max_queue, max_body=max_body, metrics=metrics)
    worker = FakeWorker(folder, **fake)
    roster = Roster(context.models, lambda name: Fleet(name, metrics, patience=patience), ServedModel.load)
    fleet_worker = Worker("w0", metrics, watcher=roster)
    with tempfile.TemporaryDirectory() as directory, contextlib.closing(listen("127.0.0.1", 0)) as listener:
        await worker.start(f"{directory}/w.sock")
        if loaded:
            await fleet_worker.connect(f"unix:{directory}/w.sock")
            await fleet_worker.greeted.wait()
            await roster.loaded()
        # The protocol alone, without uvicorn.Server around it: that one sleeps when it ends.
        config = http_config(App(context))
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: HttpProtocol(config=config, server_state=state, app_state={}), sock=listener
        )
        try:
            yield Gateway(context, worker, listener.getsockname()[1], state.connections)
        finally:
            server.close()
            for connection in list(state.connections):
                connection.shutdown()
            await worker.stop()
            while state.tasks or worker.connected:
                await asyncio.sleep(0)
            fleet_worker.close()


@contextlib.contextmanager
def serving_in_thread(folder: Path, **options: Any) -> Iterator[Gateway]:
    """`serving` in a thread, for clients that block."""
    found: list[Gateway] = []
    up, done = threading.Event(), threading.Event()

    async def scenario() -> None:
        async with serving(folder, **options) as gateway:
            found.append(gateway)
            up.set()
            while not done.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=run, args=(scenario(),))
    thread.start()
    try:
        if not up.wait(TIMEOUT):
            raise TimeoutError("the gateway did not start")
        yield found[0]
    finally:
        done.set()
        thread.join()
