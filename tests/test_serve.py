"""``penstock serve`` from outside: a real process, the demo model or a random one, the official client."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.models import llama_folder
from tests.serving import REPOSITORY, Serving


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo model's records."""
    return tmp_path_factory.mktemp("recorded") / "log"


@pytest.fixture(scope="module")
def demo(log: Path) -> Iterator[Serving]:
    """The demo model, served as ``make serve`` does, with a record of every request."""
    with Serving("--record", str(log)) as serving:
        yield serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("random") / "random-llama", tokenizer=True)


@pytest.fixture
def own(folder: Path) -> Iterator[Serving]:
    """A server that the test may harm."""
    with Serving(str(folder), "--dtype", "float32", "--kv-memory", "8MiB") as serving:
        yield serving


def until(holds: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def endless(stream: bool) -> dict[str, object]:
    """A request that runs for as long as the random model's context lasts."""
    return {
        "model": "random-llama", "prompt": "a b c", "max_tokens": 4000, "temperature": 0, "ignore_eos": True,
        "stream": stream,
    }  # fmt: skip


def idle(serving: Serving) -> bool:
    return all(
        serving.metric(name) == 0
        for name in ("penstock_worker_running", "penstock_worker_waiting", "penstock_worker_kv_used_tokens")
    )


def test_it_names_its_model(demo: Serving) -> None:
    assert [model.id for model in demo.client().models.list()] == ["penstock-demo"]
    assert "penstock-demo" in demo.ready_line


def test_the_readmes_examples_run_as_they_stand(demo: Serving) -> None:
    readme = (REPOSITORY / "README.md").read_text().replace("http://127.0.0.1:8000", demo.url)
    first, second = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, check=True)
    assert done.stdout == "12\n"
    done = subprocess.run([sys.executable, "-c", second], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", second, re.MULTILINE)
    assert len(done.stdout.splitlines()) == 3
    (curl,) = re.findall(r"```sh\n(curl .*?)```", readme, re.DOTALL)
    answer = json.loads(subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True).stdout)
    assert answer["choices"][0]["message"]["content"] == "65 euros"


def test_what_the_readme_asks_of_the_record_is_there(demo: Serving, log: Path) -> None:
    for number in range(3):
        message: ChatCompletionMessageParam = {"role": "user", "content": f"What is {number} + 5?"}
        demo.client().chat.completions.create(model="penstock-demo", messages=[message])
    commands = re.findall(r"^\.venv/bin/penstock (log .*)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 3
    printed = ""
    for command in commands:
        program = [sys.executable, "-m", "penstock", *shlex.split(command)]
        done = subprocess.run(program, cwd=log.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert "penstock-demo" in printed
    chats = [json.loads(line) for line in (log.parent / "chats.jsonl").read_text().splitlines()]
    assert {"What is 0 + 5?", "What is 2 + 5?"} <= {chat["messages"][0]["content"] for chat in chats}


def test_a_chat_whole_and_streamed_say_the_same(demo: Serving) -> None:
    client = demo.client()
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
    whole = client.chat.completions.create(model="penstock-demo", messages=messages, temperature=0)
    answer = whole.choices[0].message.content
    assert answer
    assert whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model="penstock-demo",
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_async_client_and_many_at_once(demo: Serving) -> None:
    async def ask(client: AsyncOpenAI, number: int) -> str | None:
        done = await client.chat.completions.create(
            model="penstock-demo",
            messages=[{"role": "user", "content": f"What is {number} + 7?"}],
            temperature=0,
            max_tokens=20,
        )
        return done.choices[0].message.content

    async def run() -> tuple[list[str | None], list[str | None]]:
        async with AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
            together = await asyncio.gather(*(ask(client, number) for number in range(10, 30)))
            alone = [await ask(client, number) for number in range(10, 30, 7)]
            return list(together), alone

    together, alone = asyncio.run(run())
    assert together[::7] == alone


def test_usage_counts_what_was_cached(demo: Serving) -> None:
    client = demo.client()
    prompt = "The first question about the caching of long prompts is this one. " * 6
    usages = [client.completions.create(model="penstock-demo", prompt=prompt, max_tokens=2).usage for _ in range(2)]
    first, second = (usage.prompt_tokens_details for usage in usages if usage)
    assert first is not None
    assert second is not None
    assert first.cached_tokens == 0
    assert usages[1] is not None
    assert usages[1].prompt_tokens - 17 <= (second.cached_tokens or 0) < usages[1].prompt_tokens


def test_tokenize_and_back(demo: Serving) -> None:
    with demo.http() as http:
        text = "Grüße, 世界 👋🏽"
        made = http.post("/tokenize", json={"model": "penstock-demo", "prompt": text}).json()
        assert made["count"] == len(made["tokens"])
        back = http.post("/detokenize", json={"model": "penstock-demo", "tokens": made["tokens"]}).json()
        assert text in back["prompt"]


def test_too_long_a_prompt_is_told_both_numbers(demo: Serving) -> None:
    with pytest.raises(openai.BadRequestError, match=r"\d{4,} tokens") as refused:
        demo.client().completions.create(model="penstock-demo", prompt="word " * 20_000, max_tokens=1)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b'{"model": "penstock-demo", "messages": []}', 400, "messages"),
        (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404, "model"),
        (b'{"model": "penstock-demo", "messages": [{"role": "user", "content": 5}]}', 400, "messages.0.content"),
        (b'{"model": "penstock-demo", "messages": [{"role": "user", "content": "\xff"}]}', 400, None),
        (
            b'{"model": "penstock-demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}',
            400,
            "max_tokens",
        ),
        (
            b'{"model": "penstock-demo", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
            400,
            None,
        ),
    ],
)
def test_bad_input_gets_openais_error(demo: Serving, body: bytes, status: int, param: str | None) -> None:
    with demo.http() as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


def test_a_seed_gives_the_same_text_whatever_else_runs(own: Serving) -> None:
    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=f"{own.url}/v1", api_key="none", max_retries=0) as client:

            async def say(seed: int) -> str:
                done = await client.completions.create(
                    model="random-llama", prompt="one two", max_tokens=40, temperature=1, seed=seed
                )
                return done.choices[0].text

            alone = await say(5)
            return [alone, *await asyncio.gather(*(say(seed) for seed in (5, 6, 7, 5, 8, 5)))]

    alone, *together = asyncio.run(run())
    assert alone == together[0] == together[3] == together[5]
    assert len({*together}) == 4


def test_a_client_that_leaves_a_stream_frees_its_work(own: Serving) -> None:
    with own.http() as http, http.stream("POST", "/v1/completions", json=endless(stream=True)) as answer:
        chunks = answer.iter_bytes()  # held on to: the connection closes with it
        next(chunks)
        until(lambda: own.metric("penstock_worker_running") == 1)
    until(lambda: idle(own))
    assert own.metric("penstock_disconnects_total") == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_byte_frees_its_work(own: Serving, stream: bool) -> None:
    host, port = own.url.removeprefix("http://").split(":")
    body = json.dumps(endless(stream=stream)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(5):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(head + body)
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(head + body)
        until(lambda: own.metric("penstock_worker_running") >= 1)
    until(lambda: idle(own))
    assert own.metric("penstock_worker_steps") < 4000


def test_an_answer_goes_on_with_the_worker_that_comes_after_a_killed_one(own: Serving) -> None:
    client = own.client()
    stream = client.completions.create(
        model="random-llama",
        prompt="a b",
        max_tokens=900,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    victim = own.worker()
    victim.send_signal(signal.SIGKILL)
    *_, last = stream
    assert last.usage is not None and last.usage.completion_tokens == 900
    with own.http() as http:
        until(lambda: http.get("/health/ready").status_code == 200, timeout=60)
    assert client.completions.create(model="random-llama", prompt="a b", max_tokens=3).choices[0].finish_reason
    assert own.worker().pid != victim.pid
    assert own.metric("penstock_worker_restarts_total") == 1


def test_a_whole_answer_that_loses_its_worker_is_a_503_when_none_comes_in_time(folder: Path) -> None:
    async def run(own: Serving) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=own.url, timeout=60) as http:
            asked = asyncio.create_task(http.post("/v1/completions", json=endless(stream=False)))
            while own.metric("penstock_worker_running") < 1:
                await asyncio.sleep(0.02)
            own.worker().send_signal(signal.SIGKILL)
            return await asked

    with Serving(str(folder), "--dtype", "float32", "--failover-timeout", "0.2s") as own:
        answer = asyncio.run(run(own))
    assert answer.status_code == 503
    assert answer.json()["error"]["type"]


def test_sigterm_finishes_what_runs_and_takes_nothing_new(own: Serving) -> None:
    body = endless(stream=True) | {"max_tokens": 600}
    with own.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        own.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{own.url}/health/live")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert own.process.wait(20) == 0


def test_draining_is_bounded(folder: Path) -> None:
    options = ("--dtype", "float32", "--drain-timeout", "0.5s")
    with (
        Serving(str(folder), *options) as serving,
        serving.http() as http,
        http.stream("POST", "/v1/completions", json=endless(stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        psutil.Process(serving.worker().pid).suspend()
        serving.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert "error" in rest[-1]
        assert serving.process.wait(20) == 0


def test_the_worker_does_not_outlive_a_killed_gateway(own: Serving) -> None:
    worker = own.worker()
    own.process.kill()
    gone, _ = psutil.wait_procs([worker], timeout=20)
    assert gone


def test_past_the_queue_it_says_when_to_come_back(folder: Path) -> None:
    async def run(url: str) -> list[httpx2.Response]:
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
            bodies = [endless(stream=False) | {"prompt": f"{number} b c", "max_tokens": 60} for number in range(12)]
            return list(await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies)))

    with Serving(str(folder), "--dtype", "float32", "--max-running", "1", "--max-queue", "3") as serving:
        answers = asyncio.run(run(serving.url))
        counted = serving.metric("penstock_requests_refused_total")
    refused = [answer for answer in answers if answer.status_code == 429]
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(served) == 12
    assert len(served) >= 3
    assert len(refused) == counted > 0
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in refused)


def test_a_thousand_streams_at_once(demo: Serving) -> None:
    """Every one of 1,000 simultaneous streams ends with [DONE], and nothing is left behind."""

    async def one(host: str, port: int, number: int, start: asyncio.Event) -> bytes:
        body = json.dumps(
            {
                "model": "penstock-demo",
                "prompt": f"{number} {number} ",
                "max_tokens": 8,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        reader, writer = await asyncio.open_connection(host, port)
        await start.wait()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        answer = await reader.read(-1)
        writer.close()
        return answer

    async def run() -> list[bytes]:
        host, port = demo.url.removeprefix("http://").split(":")
        start = asyncio.Event()
        streams = [asyncio.create_task(one(host, int(port), number, start)) for number in range(1000)]
        await asyncio.sleep(1)
        start.set()
        return await asyncio.gather(*streams)

    answers = asyncio.run(asyncio.wait_for(run(), 240))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert all(b"data: [DONE]" in answer for answer in answers)
    assert all(answer.count(b'"text"') >= 1 for answer in answers)
    until(lambda: idle(demo))


def test_chat_on_a_pipe(demo: Serving) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "chat", "--url", demo.url],
        input="Hello!\n", capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def fails(*words: str) -> str:
    """What a serve that can't start says; it must exit with a status that isn't 0, and without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "serve", "--port", "0", *words],
        capture_output=True, text=True, timeout=120, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    assert "ready" not in done.stdout
    return done.stderr


def test_an_unsupported_architecture_is_refused_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}))
    said = fails(str(tmp_path))
    assert "MambaForCausalLM" in said
    assert "Qwen3ForCausalLM" in said
    assert "--engine vllm" in said


def test_a_truncated_shard_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert "model.safetensors" in fails(str(tmp_path))


def test_a_port_in_use_is_said_before_anything_is_loaded(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = fails(str(folder), "--port", str(taken.getsockname()[1]))
    assert re.search(r"port|address", said)
    assert "in use" in said


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "nothing-here" in fails(str(tmp_path / "nothing-here"))
