"""An endpoint whose every answer is known beforehand: what a load test says of it can be checked."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Plan:
    """One answer: how many tokens each chunk has, the seconds before each, and how it ends.

    ``says`` is where a chunk's number of tokens is to be read.
    """

    chunks: tuple[int, ...] = (1, 1, 1, 1)
    pace: float = 0.0
    status: int = 200
    usage: bool = True
    cached: int = 0
    hidden: int = 0
    says: Literal["nothing", "token_ids", "logprobs", "usage"] = "nothing"
    ends: Literal["done", "finish", "early", "cut", "error", "never", "garbage"] = "done"
    newline: str = "\n"
    split: int = 0


@dataclass
class Counts:
    """What has been asked and answered."""

    requests: int = 0
    whole: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    connections: int = 0
    arrivals: list[float] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)


class Stub:
    """A server on a thread and a loop of its own, until the context is left.

    ``plan`` gives the answer to a body. ``stall``: so many seconds after the first request nothing is sent for so many
    seconds. ``slots``: so many answers at a time, the others queue. ``hangs_up``: the connection is closed after each
    answer, without a word of it before.
    """

    def __init__(
        self,
        plan: Callable[[dict[str, Any]], Plan] = lambda body: Plan(),
        stall: tuple[float, float] | None = None,
        slots: int = 10**6,
        models: tuple[str, ...] = ("stub",),
        hangs_up: bool = False,
    ) -> None:
        self.counts = Counts()
        self.stalled: tuple[float, float] | None = None
        self._plan = plan
        self._stall = stall
        self._slots = slots
        self._models = models
        self._hangs_up = hangs_up
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._over, self._free = asyncio.Event(), asyncio.Semaphore(self._slots)
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1000)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(lines.get("content-length", 0)))
                if not await self._answer(writer, head, json.loads(body or b"{}")) or self._hangs_up:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, head: str, body: dict[str, Any]) -> bool:
        """Whether the connection may be kept."""
        if head.startswith("GET"):
            _whole(writer, 200, {"data": [{"id": name} for name in self._models]})
            return True
        counts = self.counts
        counts.arrivals.append(time.monotonic())
        if self._stall is not None and self.stalled is None:
            begin = time.monotonic() + self._stall[0]
            self.stalled = (begin, begin + self._stall[1])
        counts.requests += 1
        counts.heads.append(head)
        counts.bodies.append(body)
        plan = self._plan(body)
        async with self._free:
            await self._unstalled()
            if plan.status != 200:
                _whole(writer, plan.status, {"error": {"message": "not now"}})
                return True
            return await self._stream(writer, body, plan)

    async def _unstalled(self) -> None:
        if self.stalled is not None and self.stalled[0] <= time.monotonic() < self.stalled[1]:
            await asyncio.sleep(self.stalled[1] - time.monotonic() + 0.005)

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        chat, prompt, so_far = "messages" in body, 7, 0

        def send(text: str) -> None:
            data = text.replace("\n", plan.newline).encode()
            step = plan.split or len(data)
            for at in range(0, len(data), step):
                piece = data[at : at + step]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))

        def event(choice: dict[str, Any] | None, usage: dict[str, Any] | None = None) -> None:
            chunk: dict[str, Any] = {"object": "chunk", "choices": [] if choice is None else [{"index": 0, **choice}]}
            send(f"data: {json.dumps(chunk | ({'usage': usage} if usage else {}))}\n\n")

        def text(words: str) -> dict[str, Any]:
            return {"delta": {"content": words}} if chat else {"text": words}

        def usage() -> dict[str, Any]:
            details = {"cached_tokens": plan.cached}
            return {"prompt_tokens": prompt, "completion_tokens": so_far, "prompt_tokens_details": details}

        if chat:
            event({"delta": {"role": "assistant", "content": ""}})
        for tokens in plan.chunks:
            if plan.pace:
                await asyncio.sleep(plan.pace)
            await self._unstalled()
            so_far += tokens
            more: dict[str, Any] = {}
            if plan.says == "token_ids":
                more = {"token_ids": list(range(tokens))}
            elif plan.says == "logprobs":
                entries = [{"token": "x", "logprob": -1.0}] * tokens
                more = {"logprobs": {"content": entries} if chat else {"tokens": ["x"] * tokens}}
            event(text("x " * tokens) | more, usage() if plan.says == "usage" else None)
            await writer.drain()
        so_far += plan.hidden
        self.counts.tokens += so_far
        self.counts.prompt_tokens += prompt
        if plan.ends == "never":
            await self._over.wait()
        if plan.ends == "error":
            send('data: {"error": {"message": "the engine fell over", "code": 500}}\n\n')
        if plan.ends == "garbage":
            send("data: {so it goes\n\n")
        if plan.ends == "cut":
            return False
        if plan.ends in ("done", "finish"):
            event({**({"delta": {}} if chat else {"text": ""}), "finish_reason": "length"})
            if plan.usage:
                event(None, usage())
            if plan.ends == "done":
                send("data: [DONE]\n\n")
            self.counts.whole += 1
        writer.write(b"0\r\n\r\n")
        return True


def _whole(writer: asyncio.StreamWriter, status: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
