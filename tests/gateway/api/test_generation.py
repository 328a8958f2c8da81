"""What can go wrong between a prompt and its answer: clients that leave, workers that fail, a queue that is full."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.link import FailureCode, Load, Output, Step
from gateway.wire import errors
from tests.gateway.harness import Answer, Gateway, chat, read_answer, request_bytes, run, serving

PATH = "/v1/chat/completions"
LONG = chat("x" * 30, max_tokens=25)


def ask(gateway: Gateway, **fields: Any) -> "asyncio.Task[Answer]":
    return asyncio.create_task(gateway.post(PATH, {**LONG, **fields}))


async def running(gateway: Gateway, count: int = 1) -> None:
    await gateway.worker.until(lambda: len(gateway.worker.running) >= count)


async def settled(gateway: Gateway) -> None:
    while gateway.context.in_flight:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_client_that_leaves_frees_the_worker_at_once(model_folder: Path, stream: bool, steps: int) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            reader, writer = await gateway.connect()
            writer.write(request_bytes("POST", PATH, {**LONG, "stream": stream}))
            await running(gateway)
            for _ in range(steps):
                gateway.worker.step()
            if stream and steps:
                await reader.readuntil(b'"content":"u')
            writer.close()
            await gateway.worker.until(lambda: gateway.worker.aborted)
            assert gateway.worker.running == {}
            await settled(gateway)
            assert gateway.context.queued == 0
            assert await gateway.metric("penstock_disconnects_total") == 1
            status = 200 if stream and steps else 499
            labels = f'endpoint="{PATH}",model="fake",outcome="disconnected",status="{status}"'
            assert await gateway.metric(f"penstock_requests_total{{{labels}}}") == 1

    run(scenario())


def test_a_client_that_leaves_within_its_body(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            _, writer = await gateway.connect()
            writer.write(request_bytes("POST", PATH, b"{", {"content-length": "100"}))
            while not gateway.context.in_flight:
                await asyncio.sleep(0.001)
            writer.close()
            await settled(gateway)
            assert await gateway.metric("penstock_disconnects_total") == 1

    run(scenario())


def test_leaving_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway, gateway.openai() as client:
            asked = asyncio.create_task(
                client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], stream=True)
            )
            await running(gateway)
            gateway.worker.step()
            stream = await asked
            await stream.close()
            await gateway.worker.until(lambda: gateway.worker.aborted)

    run(scenario())


def test_a_finished_answer_aborts_nothing(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            reader, writer = await gateway.connect()
            for stream in (True, False):  # on one connection, which is kept alive
                writer.write(request_bytes("POST", PATH, {**LONG, "stream": stream}))
                assert (await read_answer(reader)).status == 200
            writer.close()
            await settled(gateway)
            assert gateway.worker.aborted == []
            assert await gateway.metric("penstock_disconnects_total") == 0

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_that_dies_before_the_first_token(model_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            asked = ask(gateway, stream=stream)
            await running(gateway)
            gateway.worker.drop()
            found = await asked
            assert found.status == 503
            assert found.json["error"]["code"] == "unavailable"
            assert "connection broke" in found.json["error"]["message"]
            assert int(found.headers["retry-after"]) >= 1
            after = await ask(gateway)
            assert after.status == 503
            assert "restarting" in after.json["error"]["message"]
            assert gateway.context.queued == 0

    run(scenario())


def test_a_worker_that_dies_in_the_middle_of_a_stream(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            asked = ask(gateway, stream=True)
            await running(gateway)
            gateway.worker.step()
            gateway.worker.drop()
            found = await asked
            assert found.status == 200
            assert found.events[-1].startswith("error: ")
            error = json.loads(found.events[-1].removeprefix("error: "))["error"]
            assert (error["code"], error["type"]) == ("unavailable", "server_error")
            assert "[DONE]" not in found.events
            labels = f'endpoint="{PATH}",model="fake",outcome="failed",status="200"'
            assert await gateway.metric(f"penstock_requests_total{{{labels}}}") == 1

    run(scenario())


def test_the_client_sees_an_error_in_the_middle_of_a_stream(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway, gateway.openai() as client:
            asked = asyncio.create_task(
                client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], stream=True)
            )
            await running(gateway)
            gateway.worker.step()
            stream = await asked
            gateway.worker.drop()
            with pytest.raises(openai.APIError, match="connection broke"):
                async for _ in stream:
                    pass

    run(scenario())


def test_a_worker_that_dies_within_a_whole_answer(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            asked = ask(gateway)
            await running(gateway)
            gateway.worker.step()
            gateway.worker.drop()
            assert (await asked).status == 503

    run(scenario())


@pytest.mark.parametrize(
    ("code", "status", "shown"),
    [
        ("context_length_exceeded", 400, "context_length_exceeded"),
        ("invalid_request", 400, "invalid_value"),
        ("overloaded", 429, "overloaded"),
        ("draining", 503, "unavailable"),
        ("internal", 500, "internal_error"),
    ],
)
def test_what_the_worker_refuses(model_folder: Path, code: FailureCode, status: int, shown: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.worker.refuse = (code, "in the worker's words")
            found = await ask(gateway, stream=True)
            assert found.status == status
            assert found.json["error"]["code"] == shown
            assert (found.json["error"]["message"] == "in the worker's words") == (status == 400)
            assert ("retry-after" in found.headers) == (status in (429, 503))

    run(scenario())


def test_a_full_queue_refuses(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False, max_queue=2) as gateway:
            gateway.worker.send(Load(waiting=2, running=0, waiting_tokens=9, kv_used=0, kv_total=9, backlog=6.2))
            waiting = [ask(gateway), ask(gateway, stream=True)]
            await running(gateway, 2)
            assert await gateway.metric("penstock_requests_queued") == 2
            refused = await ask(gateway)
            assert refused.status == 429
            assert refused.headers["retry-after"] == "7"
            assert refused.json["error"]["type"] == "rate_limit_error"
            assert await gateway.metric("penstock_requests_refused_total") == 1

            gateway.worker.step()  # both have their first token: there is room again
            while gateway.context.queued:
                await asyncio.sleep(0.001)
            waiting.append(ask(gateway))
            await running(gateway, 3)
            gateway.worker.auto = True
            gateway.worker.kick()
            assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200, 200]
            assert gateway.context.queued == 0

    run(scenario())


def test_a_refused_request_is_told_to_wait_at_least_a_second(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False, max_queue=1) as gateway:
            first = ask(gateway)
            await running(gateway)
            assert (await ask(gateway)).headers["retry-after"] == "1"
            gateway.worker.step()
            first.cancel()

    run(scenario())


def test_several_tokens_in_one_output(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            asked = ask(gateway, stream=True)
            await running(gateway)
            ids = gateway.model.tokenizer.encode("grüß dich", add_special_tokens=False)
            (submitted,) = gateway.worker.submitted
            zeros = [0.0] * len(ids)
            gateway.worker.send(Step([Output(submitted.id, ids[:3], zeros[:3], zeros[:3])]))
            gateway.worker.send(Step([Output(submitted.id, ids[3:], zeros[3:], zeros[3:], "length")]))
            events = (await asked).events
            texts = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
            assert "".join(texts) == "grüß dich"
            assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"

    run(scenario())


def test_interrupting_everything_tells_everybody(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            streamed, whole = ask(gateway, stream=True), ask(gateway)
            await running(gateway, 2)
            gateway.worker.step()
            while gateway.context.queued:
                await asyncio.sleep(0.001)
            gateway.context.interrupt_all(lambda: errors.unavailable("Closing time."))
            assert "Closing time." in (await streamed).events[-1]
            assert (await whole).status == 503
            await gateway.worker.until(lambda: len(gateway.worker.aborted) == 2)

    run(scenario())


def test_a_client_that_does_not_read_holds_up_nobody(model_folder: Path) -> None:
    async def scenario() -> None:
        size = 60_000
        script = [65] * size
        async with serving(model_folder, auto=False, max_model_len=2**20, script=lambda submit: script) as gateway:
            reader, writer = await gateway.connect()
            body = {"model": "fake", "prompt": "x", "max_tokens": size, "stream": True}
            writer.write(request_bytes("POST", "/v1/completions", body))
            await running(gateway)
            (submitted,) = gateway.worker.submitted
            zeros = [0.0] * 100
            for step in range(size // 100):
                finish = "length" if step == size // 100 - 1 else None
                gateway.worker.send(Step([Output(submitted.id, script[:100], zeros, zeros, finish)]))  # type: ignore[arg-type]
            gateway.worker.running.clear()
            gateway.worker.auto = True
            other = await gateway.post("/v1/completions", {"model": "fake", "prompt": "x", "max_tokens": 2})
            assert other.status == 200
            found = await read_answer(reader)
            text = "".join(json.loads(event)["choices"][0]["text"] for event in found.events[:-1])
            assert len(text) == size
            writer.close()

    run(scenario())


def test_what_a_request_brings_is_counted(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.worker.cached = 5
            assert (await ask(gateway)).status == 200
            found = await gateway.get("/metrics")
            page = found.body.decode()
            assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
            for line in (
                'penstock_prompt_tokens_total{model="fake"} 35.0',
                'penstock_cached_tokens_total{model="fake"} 5.0',
                'penstock_output_tokens_total{model="fake"} 25.0',
                f'penstock_time_to_first_token_seconds_count{{endpoint="{PATH}",model="fake"}} 1.0',
                f'penstock_request_duration_seconds_count{{endpoint="{PATH}",model="fake"}} 1.0',
                f'penstock_requests_total{{endpoint="{PATH}",model="fake",outcome="ok",status="200"}} 1.0',
                "penstock_requests_in_flight 1.0",
                "penstock_requests_queued 0.0",
                'penstock_worker_up{worker="w0"} 1.0',
            ):
                assert line in page.splitlines()

    run(scenario())
