"""An upstream is killed in the middle of its answers: all are real processes, and the official client notices nothing.

The upstreams are simulated workers, whose text depends on every token before it, and servers of the demo model.
"""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import openai
import psutil

from tests.gateway.fleet.processes import REPOSITORY, WORKER, Serve
from tests.gateway.harness import run

QUESTION = "Why does water run downhill? " * 20
COUNTED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def worker(*more: str) -> "subprocess.Popen[str]":
    """A simulated worker: 60 tokens take it half a second."""
    command = [sys.executable, "penstock.py", "bench", "worker", "--speed", "0.5", *more]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def url_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    found = re.search(r"http://[\d.:]+", process.stdout.readline())
    assert found is not None
    return found[0]


@contextlib.asynccontextmanager
async def gateway(state: Path, *urls: str, more: Sequence[str] = ()) -> AsyncIterator[tuple[Serve, openai.AsyncOpenAI]]:
    options = [*more, *(word for url in urls for word in ("--upstream", url))]
    with Serve(*options, state=state) as served:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{served.port}/v1", api_key="any", max_retries=0, timeout=60
        ) as client:
            while await served.metric("penstock_upstream_up") < len(urls):
                await asyncio.sleep(0.05)
            yield served, client


async def answer(client: openai.AsyncOpenAI, chat: bool, model: str, prompt: str, **more: Any) -> tuple[str, Any, Any]:
    """The text of a streamed answer, why it ended, and its usage."""
    asked: Any = {"model": model, "max_tokens": 60, **COUNTED, **more}
    if chat:
        stream: Any = await client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **asked)
    else:
        stream = await client.completions.create(prompt=prompt, **asked)
    usage: Any = None
    text, reason, ids = "", None, set()
    async for chunk in stream:
        ids.add((chunk.id, chunk.object, chunk.model))
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += (choice.delta.content if chat else choice.text) or ""
            reason = choice.finish_reason or reason
    assert len(ids) == 1
    return text, reason, (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


async def killed_in_the_middle(served: Serve, processes: dict[str, Any], asking: Any) -> list[Any]:
    """What ``asking`` brings when the upstream with the most requests dies while they run."""
    tasks = [asyncio.create_task(one) for one in asking]
    busiest = ""
    async with asyncio.timeout(30):
        while not busiest:
            await asyncio.sleep(0.02)
            page = (await served.ask({}, "/metrics")).body.decode()
            loads = dict(re.findall(r'^penstock_upstream_in_flight\{upstream="(.+)"\} (\d+)', page, re.M))
            if sum(map(float, loads.values())) == len(tasks):
                busiest = max(loads, key=lambda name: float(loads[name]))
    await asyncio.sleep(0.15)
    processes[busiest].send_signal(signal.SIGKILL)
    return await asyncio.gather(*tasks)


def test_answers_of_a_killed_worker_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    async def scenario(workers: list["subprocess.Popen[str]"]) -> None:
        urls = [url_of(process) for process in workers]
        processes = {url.removeprefix("http://"): process for url, process in zip(urls, workers, strict=True)}
        async with gateway(tmp_path, *urls) as (served, client):
            questions = [(bool(number % 2), "simulated", f"{number} {QUESTION}") for number in range(6)]
            undisturbed = [await answer(client, *one) for one in questions[:2]]
            undisturbed += await asyncio.gather(*(answer(client, *one) for one in questions[2:]))
            assert {(reason, usage[1]) for _, reason, usage in undisturbed} == {("length", 60)}
            found = await killed_in_the_middle(served, processes, [answer(client, *one) for one in questions])
            assert found == undisturbed
            assert await served.metric("penstock_streams_continued_total") >= 3

    with worker() as one, worker() as two:
        try:
            run(scenario([one, two]), 90)
        finally:
            for process in (one, two):
                process.kill()


def test_greedy_and_seeded_answers_of_real_servers_go_on_token_for_token(tmp_path: Path) -> None:
    async def scenario(servers: list[Serve]) -> None:
        urls = [f"http://127.0.0.1:{server.port}" for server in servers]
        processes = {
            url.removeprefix("http://"): psutil.Process(server.process.pid)
            for url, server in zip(urls, servers, strict=True)
        }
        async with gateway(tmp_path, *urls) as (served, client):
            model = "penstock-demo"
            extra = {"extra_body": {"ignore_eos": True}, "max_tokens": 200}
            asked: list[tuple[bool, str, dict[str, Any]]] = [
                (False, "The water of the river", {"temperature": 0.0, **extra}),
                (True, "Tell me about rivers.", {"temperature": 0.0, **extra}),
                (False, "Once upon a time", {"temperature": 1.0, "seed": 7, **extra}),
                (True, "Who are you?", {"temperature": 1.0, "seed": 9, "stop": ["zzqq"], **extra}),
            ]
            undisturbed = [await answer(client, chat, model, text, **more) for chat, text, more in asked]
            assert all(usage[1] == 200 for _, _, usage in undisturbed)
            asking = [answer(client, chat, model, text, **more) for chat, text, more in asked]
            found = await killed_in_the_middle(served, processes, asking)
            assert found == undisturbed
            assert await served.metric("penstock_streams_continued_total") >= 1

    with contextlib.ExitStack() as stack:
        states = [tmp_path / name for name in "ab"]
        starting = [Serve(*WORKER, state=state) for state in states]
        run(scenario([stack.enter_context(server) for server in starting]), 120)
        for server in starting:
            server.process.kill()
            server.process.communicate()
