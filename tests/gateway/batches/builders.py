"""Inputs of batches, and an application that answers them without a worker."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from gateway.api.exchange import Receive, Scope, Send
from gateway.api.inside import Application
from gateway.app import App
from gateway.batches.service import Batches
from gateway.wire.batches import Batch, CreateBatch, Status
from gateway.wire.files import FileObject, Purpose
from tests.gateway.harness import Gateway, serving

ENDPOINT: Final = "/v1/chat/completions"

Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


def line(custom_id: str, **fields: Any) -> dict[str, Any]:
    """A line of an input; ``body`` is ``{"say": custom_id}`` unless it is given."""
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"say": custom_id}, **fields}


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def numbered(count: int) -> bytes:
    """An input of ``count`` lines whose ids are their numbers."""
    return jsonl([line(str(number)) for number in range(count)])


def echo(body: dict[str, Any]) -> tuple[int, bytes]:
    return 200, json.dumps({"said": body["say"]}).encode()


class StubApp:
    """Answers with what ``reply`` makes of a body. Not ``open``: holds every request until it is."""

    def __init__(self, reply: Reply = echo) -> None:
        self.reply = reply
        self.open = asyncio.Event()
        self.open.set()
        self.under_way = 0
        self.most_under_way = 0
        self.asked: Counter[str] = Counter()
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        body = json.loads(message["body"])
        self.scopes.append(scope)
        self.asked[body.get("say", "")] += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            await self.open.wait()
        finally:
            self.under_way -= 1
        status, answer = self.reply(body)
        headers = [(b"content-type", b"application/json"), (b"x-request-id", b"req-stub")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer, "more_body": False})


@contextlib.asynccontextmanager
async def opened(path: Path, app: Application, **options: Any) -> AsyncIterator[Batches]:
    """Batches in the data folder ``path``, started."""
    batches = Batches(app, path, **options)
    await batches.start()
    try:
        yield batches
    finally:
        await batches.close()


@contextlib.asynccontextmanager
async def with_files(
    model_folder: Path, data: Path, *, fake: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Gateway]:
    """A gateway with a fake worker and the data folder ``data``."""
    async with (
        serving(model_folder, **(fake or {})) as gateway,
        opened(data, App(gateway.context), **options) as batches,
    ):
        gateway.context.batches = batches
        yield gateway


async def upload(
    batches: Batches, data: bytes, purpose: Purpose = "batch", keep: int | None = None, key: str = ""
) -> FileObject:
    store = await batches.files()
    new = store.begin()
    try:
        new.write(data)
        return new.commit("input.jsonl", purpose, keep, key)
    finally:
        new.discard()


async def submit(batches: Batches, data: bytes, **fields: Any) -> Batch:
    """A batch of the lines in ``data``."""
    file = await upload(batches, data)
    asked = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h", **fields}
    return await batches.create(CreateBatch(**asked))


async def until(batches: Batches, id: str, *statuses: Status) -> Batch:
    """The batch once it has one of ``statuses``, whichever key's it is."""
    one = (await batches._open()).runs[id]
    while True:
        batch = one.batch
        if batch.status in statuses:
            return batch
        await asyncio.sleep(0.005)


async def content(batches: Batches, id: str | None) -> list[dict[str, Any]]:
    """The lines of a file of results; none where there is no file."""
    if id is None:
        return []
    return [json.loads(text) for text in (await batches.files()).path(id).read_text().splitlines()]
