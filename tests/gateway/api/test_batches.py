"""``/v1/batches``, through the official client and a fake worker."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.gateway.batches.builders import ENDPOINT, jsonl, line, with_files
from tests.gateway.harness import chat, run


def chats(count: int, **fields: Any) -> bytes:
    return jsonl([line(f"id-{n}", body=chat(f"say {n}", **fields)) for n in range(count)])


async def made(client: openai.AsyncOpenAI, data: bytes, endpoint: Any = ENDPOINT, **fields: Any) -> Batch:
    file = await client.files.create(file=("input.jsonl", data), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    while batch.status not in ("completed", "failed", "cancelled", "expired"):
        await asyncio.sleep(0.01)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def lines(client: openai.AsyncOpenAI, id: str | None) -> dict[str, Any]:
    assert id is not None
    found = [json.loads(text) for text in (await client.files.content(id)).text.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


def test_through_the_client(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway, gateway.openai() as client:
            data = chats(20) + jsonl([line("long", body=chat("x" * 100)), line("gone", body={**chat(), "model": "no"})])
            batch = await made(client, data, metadata={"k": "v"})
            assert (batch.status, batch.object, batch.endpoint) == ("validating", "batch", ENDPOINT)
            assert (batch.completion_window, batch.metadata) == ("24h", {"k": "v"})
            batch = await ended(client, batch)
            assert batch.status == "completed"
            counts = batch.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (22, 20, 2)
            output = await lines(client, batch.output_file_id)
            for n in range(20):
                response = output[f"id-{n}"]["response"]
                assert response["status_code"] == 200
                assert response["request_id"].startswith("req-")
                assert f"say {n}\n" in response["body"]["choices"][0]["message"]["content"]
                assert response["body"]["object"] == "chat.completion"
            failed = await lines(client, batch.error_file_id)
            assert failed["long"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
            assert failed["gone"]["response"]["status_code"] == 404
            assert failed["gone"]["response"]["body"]["error"]["code"] == "model_not_found"
            assert all(submit.background for submit in gateway.worker.submitted)
            usages = [one["response"]["body"]["usage"] for one in output.values()]
            assert batch.usage is not None
            assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages) > 0
            assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in usages)
            assert gateway.context.in_flight == gateway.context.queued == 0
            file = await client.files.retrieve(batch.output_file_id or "")
            assert file.purpose == "batch_output"

    run(scenario())


def test_completions_too(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway, gateway.openai() as client:
            url = "/v1/completions"
            data = jsonl([line(str(n), url=url, body={"model": "fake", "prompt": f"p{n}"}) for n in range(5)])
            batch = await ended(client, await made(client, data, url))
            output = await lines(client, batch.output_file_id)
            assert {id: one["response"]["body"]["choices"][0]["text"] for id, one in output.items()} == {
                str(n): f"p{n}" for n in range(5)
            }

    run(scenario())


@pytest.mark.parametrize(
    ("url", "body", "object"),
    [
        ("/v1/embeddings", {"input": ["one", "two"]}, "list"),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 16}, "response"),
    ],
)
def test_other_endpoints(model_folder: Path, tmp_path: Path, url: str, body: dict[str, Any], object: str) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway, gateway.openai() as client:
            data = jsonl([line(str(n), url=url, body={"model": "fake", **body}) for n in range(4)])
            batch = await ended(client, await made(client, data, url))
            output = await lines(client, batch.output_file_id)
            assert len(output) == 4
            assert all(one["response"]["body"]["object"] == object for one in output.values())
            assert all(submit.background for submit in gateway.worker.submitted)

    run(scenario())


def test_the_client_that_blocks(model_folder: Path, tmp_path: Path) -> None:
    def blocking(url: str) -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            file = client.files.create(file=("input.jsonl", chats(3)), purpose="batch")
            batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            while batch.status != "completed":
                time.sleep(0.01)
                batch = client.batches.retrieve(batch.id)
            return client.files.content(batch.output_file_id or "").text

    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway:
            assert (await asyncio.to_thread(blocking, gateway.url)).count("\n") == 3

    run(scenario())


def test_a_list_of_batches(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway, gateway.openai() as client:
            ids = [(await made(client, chats(1))).id for _ in range(5)]
            assert [one.id async for one in client.batches.list()] == ids[::-1]
            assert [one.id async for one in client.batches.list(limit=2)] == ids[::-1]
            assert [one["id"] for one in (await gateway.get("/v1/batches?order=asc&limit=3")).json["data"]] == ids[:3]
            page = await client.batches.list(limit=2, after=ids[4])
            assert ([one.id for one in page.data], page.has_more) == ([ids[3], ids[2]], True)
            for query in ("limit=0", "limit=101"):
                assert (await gateway.get(f"/v1/batches?{query}")).status == 400

    run(scenario())


def test_what_is_refused(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway, gateway.openai() as client:
            file = await client.files.create(file=chats(1), purpose="batch")
            good = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
            refused: list[tuple[dict[str, Any], str, str]] = [
                ({"endpoint": "/v1/models"}, "endpoint", "is not one of /v1/chat/completions"),
                ({"completion_window": "1h"}, "completion_window", "'1h' is not '24h'"),
                ({"input_file_id": "file-none"}, "input_file_id", "no such file"),
                ({"metadata": {"k": 1}}, "metadata.*", "expected a string"),
                ({"metadata": {"k": "v" * 513}}, "metadata", "more than 512"),
                ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "more than 16 keys"),
                ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds", "5"),
            ]
            for fields, param, message in refused:
                found = await gateway.post("/v1/batches", {**good, **fields})
                assert (found.status, found.json["error"]["param"]) == (400, param)
                assert message in found.json["error"]["message"]
            for call in (client.batches.retrieve, client.batches.cancel):
                with pytest.raises(openai.NotFoundError, match="Batch with id 'batch_none' not found"):
                    await call("batch_none")

    run(scenario())


def test_what_is_wrong_with_an_input(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway, gateway.openai() as client:
            batch = await ended(client, await made(client, chats(2) + b"{\n" + chats(1)))
            assert batch.status == "failed"
            assert batch.errors is not None
            assert batch.errors.data is not None
            assert [(error.line, error.code, error.param) for error in batch.errors.data] == [
                (3, "invalid_json_line", None),
                (4, "duplicate_custom_id", "custom_id"),
            ]
            with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'failed'"):
                await client.batches.cancel(batch.id)

    run(scenario())


def test_cancelling_frees_the_worker(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            with_files(model_folder, tmp_path, fake={"auto": False}, concurrency=4) as gateway,
            gateway.openai() as client,
        ):
            batch = await made(client, chats(50))
            await gateway.worker.until(lambda: len(gateway.worker.running) == 4)
            batch = await client.batches.cancel(batch.id)
            assert batch.status in ("cancelling", "cancelled")
            batch = await ended(client, batch)
            assert batch.status == "cancelled"
            await gateway.worker.until(lambda: not gateway.worker.running)
            assert len(gateway.worker.aborted) == 4
            failed = await lines(client, batch.error_file_id)
            assert len(failed) == 50
            assert all(one["error"]["code"] == "batch_cancelled" for one in failed.values())
            assert batch.output_file_id is None

    run(scenario())


def test_batches_take_no_place_in_the_queue(model_folder: Path, tmp_path: Path) -> None:
    """Online requests are refused by their own number alone, and batches never are."""

    async def scenario() -> None:
        async with (
            with_files(model_folder, tmp_path, fake={"auto": False, "max_queue": 2}, concurrency=8) as gateway,
            gateway.openai() as client,
        ):
            batch = await made(client, chats(30))
            await gateway.worker.until(lambda: len(gateway.worker.running) == 8)
            assert gateway.context.queued == 0
            online = [asyncio.create_task(gateway.post(ENDPOINT, chat("now", max_tokens=1))) for _ in range(2)]
            await gateway.worker.until(lambda: len(gateway.worker.running) == 10)
            assert (await gateway.post(ENDPOINT, chat("too much"))).status == 429
            gateway.worker.auto = True
            gateway.worker.kick()
            assert [(await one).status for one in online] == [200, 200]
            assert (await ended(client, batch)).status == "completed"
            assert [submit.background for submit in gateway.worker.submitted].count(False) == 2

    run(scenario())
