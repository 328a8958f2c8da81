"""Upstreams that die, hang or talk nonsense in the middle of answers: gateway and upstreams are real processes."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fleet.processes import PATIENCE, Serve
from tests.gateway.fleet.upstream_process import WORDS, UpstreamProcess
from tests.gateway.fleet.wire import Wire
from tests.gateway.harness import Answer, read_answer, request_bytes, run

CHAT = "/v1/chat/completions"


def chat(wish: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": wish}], **more}


class Gateway:
    """A gateway in front of two upstreams, of which the first may be reached through a network that can be harmed."""

    def __init__(self, served: Serve, upstreams: list[UpstreamProcess], wire: Wire | None) -> None:
        self.served, self.upstreams, self.wire = served, upstreams, wire

    async def send(self, wish: str, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.served.port)
        writer.write(request_bytes("POST", CHAT, chat(wish, **more), {"connection": "close"}))
        return reader, writer

    async def ask(self, wish: str, **more: Any) -> Answer:
        reader, writer = await self.send(wish, **more)
        try:
            return await read_answer(reader)
        finally:
            writer.close()

    async def up(self, count: int) -> None:
        """Wait until so many upstreams are there and none is avoided."""
        metric = self.served.metric
        while await metric("penstock_upstream_up") < count or await metric("penstock_upstream_breaker"):
            await asyncio.sleep(0.02)

    @property
    def laid(self) -> Wire:
        assert self.wire is not None
        return self.wire

    async def begun(self, times: int) -> None:
        """Wait until the upstreams have so many requests in all."""
        while sum(one.heard.count("begun") for one in self.upstreams) < times:
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def gateway(state: Path, count: int = 2, *, wired: bool = False, **options: str) -> AsyncIterator[Gateway]:
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(UpstreamProcess()) for _ in range(count)]
        urls = [one.url for one in upstreams]
        wire = Wire(f"tcp://127.0.0.1:{upstreams[0].port}") if wired else None
        if wire is not None:
            urls[0] = (await stack.enter_async_context(wire.laid())).replace("tcp:", "http:")
        words = [word for url in urls for word in ("--upstream", url)]
        words += [word for name, text in options.items() for word in (f"--upstream-{name.replace('_', '-')}", text)]
        served = Serve(*words, state=state)
        stack.callback(served.__exit__, None, None, None)
        await asyncio.to_thread(served.ready)
        found = Gateway(served, upstreams, wire)
        await found.up(count)
        yield found
        log = await asyncio.to_thread(served.end)
        assert "Traceback" not in log


def is_whole(answer: Answer) -> bool:
    """Whether everything came: each word once, in order, and an end."""
    if answer.status != 200 or b"error" in answer.body:
        return False
    if not answer.body.startswith(b"data: "):
        return b"whole" in answer.body
    return answer.body.endswith(b"[DONE]\n\n") and all(b'" %d"' % number in answer.body for number in range(WORDS))


HARMS: dict[str, Callable[[Gateway], None]] = {
    "killed": lambda found: found.upstreams[0].process.kill(),
    "stalled": lambda found: found.upstreams[0].process.send_signal(signal.SIGSTOP),
    "half-open": lambda found: found.laid.open.clear(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_has_no_first_byte_is_answered_by_another_and_a_stream_says_that_it_ends(
    tmp_path: Path, harm: str
) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path, wired=True, first_byte_timeout="0.5", idle_timeout="0.5") as found:
            streams = [asyncio.create_task(found.ask("words", stream=True)) for _ in range(4)]
            await found.begun(4)
            await asyncio.sleep(0.1)
            had = found.upstreams[0].heard.count("begun")
            assert 0 < had < 4
            wholes = [asyncio.create_task(found.ask("whole")) for _ in range(8)]
            await found.upstreams[0].until_heard("begun", had + 1)
            HARMS[harm](found)
            assert all(map(is_whole, await asyncio.gather(*wholes)))
            assert await found.served.metric("penstock_retries_total") > 0
            answers = await asyncio.gather(*streams)
            assert sum(map(is_whole, answers)) == 4 - had
            for answer in answers:
                if not is_whole(answer):
                    assert answer.events[-1].startswith('error: {"error":{"message":"The upstream')
            assert is_whole(await found.ask("words", stream=True))

    run(scenario(), PATIENCE)


def test_clients_that_leave_garbage_and_a_drain(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path, 1) as found:
            (upstream,) = found.upstreams
            for wish, stream in (("silence", False), ("silence", True), ("words", True)):
                reader, writer = await found.send(wish, stream=stream)
                await upstream.until_heard("begun", upstream.heard.count("left") + 1)
                if wish == "words":
                    await reader.readuntil(b'" 3"')
                writer.transport.abort()
                await upstream.until_heard("left", upstream.heard.count("begun"))
            while await found.served.metric("penstock_upstream_in_flight"):
                await asyncio.sleep(0.01)

            answer = await found.ask("garbage")
            assert (answer.status, answer.json["error"]["code"]) == (502, "bad_upstream")
            answer = await found.ask("garbage in the middle", stream=True)
            assert answer.events[-1].startswith('error: {"error":{"message":"The upstream')

            before = upstream.heard.count("begun")
            asked = [asyncio.create_task(found.ask("words", stream=True)) for _ in range(4)]
            await upstream.until_heard("begun", before + 4)
            found.served.process.send_signal(signal.SIGTERM)
            assert all(map(is_whole, await asyncio.gather(*asked)))
            assert await asyncio.to_thread(found.served.process.wait, 10) == 0

    run(scenario(), PATIENCE)


def test_every_upstream_restarted_in_turn_under_load_fails_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path) as found:
            ended = asyncio.Event()
            answers: list[Answer] = []

            async def client(number: int) -> None:
                while not ended.is_set():
                    answers.append(await found.ask("words", stream=number % 2 == 0))

            clients = [asyncio.create_task(client(number)) for number in range(8)]
            for upstream in found.upstreams:
                before = len(answers)
                await upstream.end()
                while len(answers) < before + 8:
                    await asyncio.sleep(0.01)
                await upstream.start()
                await found.up(2)
            ended.set()
            await asyncio.gather(*clients)
            assert [answer.body for answer in answers if not is_whole(answer)] == []

    run(scenario(), PATIENCE)
