"""An upstream in a process of its own, to be killed, stopped and restarted: ``python -m … [PORT]``.

It says on standard output where it listens, when a request has begun and when a client has left before its end. What
the request's last message says is what it does: see `answer`. SIGTERM lets what runs finish, as a good server does.
"""

import asyncio
import signal
import subprocess
import sys
from types import TracebackType

from tests.gateway.lane.upstream import Talk, Upstream

WORDS = 30
_A_WORD = 0.02  # seconds


async def answer(talk: Talk) -> None:
    """Words, one after the other; after ``silence``: nothing at all; after ``garbage``: what is no HTTP."""
    wish = talk.request.json["messages"][-1]["content"]
    print("begun", flush=True)
    if wish == "silence":
        await asyncio.sleep(60)
    if wish == "garbage":
        talk.writer.write(b"\xff\x00 no HTTP\r\n\r\n")
        return
    if not talk.request.json.get("stream"):
        await asyncio.sleep(WORDS * _A_WORD / 4)
        talk.reply({"choices": [{"index": 0, "message": {"content": "whole"}}]})
        return
    talk.begin_stream()
    for number in range(WORDS):
        talk.event(f" {number}")
        await talk.writer.drain()
        await asyncio.sleep(_A_WORD)
        if wish == "garbage in the middle" and number == 3:
            talk.writer.write(b"no chunk\r\n")
    talk.end_stream()


class Ending(Upstream):
    """One that can finish what it has."""

    def __init__(self, port: int) -> None:
        super().__init__(port=port)
        self.under_way = 0
        self.idle: set[asyncio.StreamWriter] = set()
        self.draining = False

    async def drain(self) -> None:
        """Take no more connections or requests; return when nothing is under way."""
        assert self._server is not None
        self._server.close()
        self.draining = True
        for writer in self.idle:
            writer.close()
        while self.under_way:
            await asyncio.sleep(0.01)
        await self.stop()


async def serve(port: int) -> None:
    upstream = Ending(port)

    async def counted(talk: Talk) -> None:
        upstream.under_way += 1
        upstream.idle.discard(talk.writer)
        try:
            await answer(talk)
            await talk.writer.drain()
        except asyncio.CancelledError:
            print("left", flush=True)
            raise
        finally:
            upstream.under_way -= 1
            if upstream.draining:
                talk.writer.close()
            else:
                upstream.idle.add(talk.writer)

    upstream.script = counted
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await upstream.start()
    print(f"listening {upstream.port}", flush=True)
    await ended.wait()
    await upstream.drain()


class UpstreamProcess:
    """One of them, seen from a test. ``heard`` is what it has said since `ready`, in lines."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.heard: list[str] = []

    async def start(self) -> None:
        """Start it, at the port that it had before if it had one."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __spec__.name, str(self.port), stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.port = int((await self.process.stdout.readline()).split()[1])
        self._listener = asyncio.create_task(self._listen(self.process.stdout))

    async def until_heard(self, line: str, times: int = 1) -> None:
        """Wait until it has said something."""
        while self.heard.count(line) < times:
            await asyncio.sleep(0.005)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for its end."""
        self.process.send_signal(number)
        await self.process.wait()
        await self._listener

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "UpstreamProcess":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            await self.end(signal.SIGKILL)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.heard.append(line.decode().strip())


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if sys.argv[1:] else 0))
