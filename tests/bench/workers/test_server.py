"""`bench.workers.server`, judged by the official client, a bare socket, and those who follow vLLM's workers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
import uvloop
import zmq
import zmq.asyncio
from msgspec import msgpack
from prometheus_client.parser import text_string_to_metric_families

from bench.simulate.machines import find
from bench.workers.live import LiveWorker, Setting
from bench.workers.server import Service, listen
from engine.events import KvEventPublisher
from gateway.fleet.upstream.load_page import parse
from scheduler.blocks import chain_hashes, root_hash, short_hash

T = TypeVar("T")

QUESTION = "Why does water run downhill? " * 20
SETTING = Setting(machine=find("h200/llama-3.1-8b"), speed=20)


class Running:
    """A worker that answers, and ways of asking it."""

    def __init__(self, service: Service, port: int) -> None:
        self.worker = service.worker
        self.service = service
        self.port = port
        self.client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)

    async def chat(self, text: str = QUESTION, **more: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return await self.client.chat.completions.create(model="simulated", messages=messages, **more)

    async def raw(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(_request(method, path, body, "connection: close\r\n"))
        answer = await reader.read()
        writer.close()
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest


def _request(method: str, path: str, body: bytes, more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: any\r\n{more}content-length: {len(body)}\r\n\r\n".encode() + body


@contextlib.asynccontextmanager
async def running(publisher: KvEventPublisher | None = None) -> AsyncIterator[Running]:
    worker = LiveWorker(SETTING, asyncio.get_running_loop(), publisher)
    service = Service(worker, "simulated")
    server = await listen(service, "127.0.0.1", 0)
    running = Running(service, server.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        await running.client.close()
        server.close()
        worker.close()


def run(scenario: Callable[[Running], Coroutine[Any, Any, T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(20), running() as here:
            return await scenario(here)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_a_chat_says_the_same_streamed_and_whole_and_finds_its_prompt_again() -> None:
    async def scenario(here: Running) -> None:
        whole = await here.chat(max_tokens=20)
        chunks = [
            chunk async for chunk in await here.chat(max_tokens=20, stream=True, stream_options={"include_usage": True})
        ]
        *said, last = chunks
        assert len(said) == 20
        assert "".join(chunk.choices[0].delta.content for chunk in said) == whole.choices[0].message.content
        assert [chunk.choices[0].finish_reason for chunk in said] == [None] * 19 + ["length"]
        assert said[0].choices[0].delta.role == whole.choices[0].message.role == "assistant"
        assert whole.usage.prompt_tokens == last.usage.prompt_tokens == len(QUESTION) // 4 + 3
        assert whole.usage.prompt_tokens_details.cached_tokens == 0
        assert last.usage.prompt_tokens_details.cached_tokens == last.usage.prompt_tokens // 16 * 16
        assert (last.choices, last.usage.completion_tokens, last.usage.total_tokens) == ([], 20, 20 + 148)

    run(scenario)


def test_the_next_turn_finds_the_answer_before_it() -> None:
    async def scenario(here: Running) -> None:
        messages: Any = [{"role": "user", "content": QUESTION}]
        ask = here.client.chat.completions.create
        first: Any = await ask(model="simulated", messages=messages, max_completion_tokens=100)
        messages += [{"role": "assistant", "content": first.choices[0].message.content}]
        messages += [{"role": "user", "content": [{"type": "text", "text": "And why uphill?"}]}]
        second: Any = await ask(model="simulated", messages=messages, max_completion_tokens=5)
        # Of the answer's last token no KV was ever computed.
        known = (first.usage.prompt_tokens + 100 - 1) // 16 * 16
        assert second.usage.prompt_tokens_details.cached_tokens == known

    run(scenario)


def test_a_completion_of_token_ids_goes_on_where_another_broke_off() -> None:
    async def scenario(here: Running) -> None:
        ask = here.client.completions.create
        more: Any = {"return_token_ids": True}
        whole = await ask(model="simulated", prompt=QUESTION, max_tokens=30, extra_body=more)
        known: Any = whole.choices[0]
        assert len(known.token_ids) == 30
        before = known.prompt_token_ids + known.token_ids[:12]
        rest = await ask(model="simulated", prompt=before, max_tokens=18, stream=True, extra_body=more)
        chunks: list[Any] = [chunk async for chunk in rest]
        assert "".join(chunk.choices[0].text for chunk in chunks) == known.text[12 * 4 :]
        assert [id for chunk in chunks for id in chunk.choices[0].token_ids] == known.token_ids[12:]
        assert chunks[0].choices[0].prompt_token_ids == before
        counted = {"include_usage": True}
        asked: Any = {"model": "simulated", "prompt": before, "max_tokens": 30, "stream_options": counted}
        rest = await ask(**asked, stream=True, extra_body={**more, "answered": 12})
        chunks = [chunk async for chunk in rest]
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == known.text[12 * 4 :]
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (len(known.prompt_token_ids), 30)

    run(scenario)


def test_rendering_says_what_a_chat_has_for_tokens() -> None:
    async def scenario(here: Running) -> None:
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 7}
        status, answer = await here.raw("POST", "/v1/chat/completions/render", json.dumps(body).encode())
        rendered = json.loads(answer)
        told = await here.chat(max_tokens=1, extra_body={"return_token_ids": True})
        assert (status, rendered["model"], rendered["stream"]) == (200, "simulated", False)
        assert rendered["token_ids"] == told.choices[0].prompt_token_ids
        assert rendered["sampling_params"]["max_tokens"] == 7

    run(scenario)


def test_models_and_health() -> None:
    async def scenario(here: Running) -> None:
        models = await here.client.models.list()
        assert [(model.id, model.model_dump()["max_model_len"]) for model in models.data] == [("simulated", 131_072)]
        assert await here.raw("GET", "/health") == (200, b"")
        assert (await here.raw("GET", "/nowhere"))[0] == 404
        assert (await here.raw("GET", "/v1/completions"))[0] == 405

    run(scenario)


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"model": "another"}, 404, "model_not_found"),
        ({"n": 2}, 400, "invalid_value"),
        ({"max_tokens": "many"}, 400, "invalid_type"),
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 600_000}]}, 400, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_answered_is_an_error(more: dict[str, Any], status: int, code: str) -> None:
    async def scenario(here: Running) -> None:
        body = {"model": "simulated", "messages": [{"role": "user", "content": "hi"}], **more}
        with pytest.raises(openai.APIStatusError) as refused:
            await here.client.chat.completions.create(**body)
        assert (refused.value.status_code, refused.value.code) == (status, code)
        assert await here.chat(max_tokens=1), "the next one is answered"

    run(scenario)


def test_bodies_that_are_none() -> None:
    async def scenario(here: Running) -> None:
        assert (await here.raw("POST", "/v1/completions", b"{"))[0] == 400
        assert (await here.raw("POST", "/v1/completions", b'{"prompt": [-1]}'))[0] == 400
        assert (await here.raw("POST", "/v1/completions", b'{"prompt": []}'))[0] == 400
        assert (await here.raw("NONSENSE", "/"))[0] == 400

    run(scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(stream: bool) -> None:
    async def scenario(here: Running) -> None:
        body = json.dumps({"prompt": QUESTION, "max_tokens": 100_000, "stream": stream}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(_request("POST", "/v1/completions", body))
        await until(lambda: here.worker.load.output_tokens_total > 5)
        assert here.worker.load.running == 1
        writer.close()
        await until(lambda: here.worker.load.running == 0)
        assert here.worker.load.kv_used == 0
        assert not here.service.connections

    run(scenario)


def test_requests_on_one_connection_are_answered_in_turn() -> None:
    async def scenario(here: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        bodies = [json.dumps({"prompt": f"{number}", "max_tokens": 20 - 9 * number}).encode() for number in range(3)]
        writer.write(b"".join(_request("POST", "/v1/completions", body) for body in bodies))
        counts = []
        for _ in bodies:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            counts.append(json.loads(await reader.readexactly(length))["usage"]["completion_tokens"])
        writer.close()
        assert counts == [20, 11, 2]

    run(scenario)


def test_its_page_has_what_is_known_of_vllm() -> None:
    async def scenario(here: Running) -> None:
        await here.chat(max_tokens=3)
        asking = asyncio.create_task(here.chat("another", max_tokens=2000))
        await until(lambda: here.worker.load.running == 1)
        _, text = await here.raw("GET", "/metrics")
        load = parse(text)
        assert load is not None
        assert (load.running, load.waiting, load.kv_tokens) == (1, 0, SETTING.machine.kv_tokens // 16 * 16)
        assert 0 < load.kv_used < 0.01
        samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
        values = {sample.name: sample.value for sample in samples}
        assert values["vllm:prompt_tokens_total"] == values["vllm:prefix_cache_queries_total"] == 148 + 5
        assert values["vllm:prefix_cache_hits_total"] == 0
        await asking

    run(scenario)


def test_its_cache_can_be_followed_and_what_was_missed_replayed(tmp_path: Path) -> None:
    events, replays = (f"ipc://{tmp_path}/{name}" for name in ("events", "replays"))

    async def scenario() -> None:
        publisher = KvEventPublisher(events, replays)
        context = zmq.asyncio.Context()
        subscriber, asker = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        subscriber.connect(events)
        subscriber.subscribe("")
        asker.connect(replays)
        await asyncio.sleep(0.5)
        async with asyncio.timeout(20), running(publisher) as here:
            body = {"return_token_ids": True}
            told: Any = await here.client.completions.create(
                model="simulated", prompt=QUESTION, max_tokens=40, extra_body=body
            )
            choice = told.choices[0]
            tokens = (choice.prompt_token_ids + choice.token_ids)[:-1]
            expected = [short_hash(digest) for digest in chain_hashes(tokens, 16, root_hash("", ""))]
            hashes: list[int] = []
            sequences = []
            while len(hashes) < len(expected):
                _, number, payload = await subscriber.recv_multipart()
                sequences.append(int.from_bytes(number, "big"))
                for event in msgpack.decode(payload)[1]:
                    assert event["type"] == "BlockStored"
                    hashes += event["block_hashes"]
            assert hashes == expected
            assert sequences == list(range(len(sequences)))
            await asker.send_multipart([b"", (1).to_bytes(8, "big")])
            while not await asker.poll(5):
                publisher.serve_replays()
            replayed = [(await asker.recv_multipart())[1] for _ in sequences]
            assert replayed == [number.to_bytes(8, "big", signed=True) for number in [*sequences[1:], -1]]
        context.destroy(linger=0)
        publisher.close()

    asyncio.run(scenario())
