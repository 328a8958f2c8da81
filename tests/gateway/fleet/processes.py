"""A real ``penstock serve`` over real workers of the demo model, for tests that harm them."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.gateway.harness import Answer, read_answer, request_bytes

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = "penstock-demo"
PATIENCE = 120.0  # workers start with torch, which takes a second or, on a busy machine, twenty
# Small, and quick to be there: the demo model needs no more.
WORKER = ("--device", "cpu", "--dtype", "float32", "--kv-memory", "32MiB", "--threads", "1")


def start(*words: str, state: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "penstock.py", *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(state), **environment},
    )


class Serve:
    """A server in a process of its own, with its workers in others."""

    def __init__(self, *words: str, state: Path, **environment: str) -> None:
        self.process = start("serve", "--port", "0", *words, state=state, **environment)
        self.port = 0

    def __enter__(self) -> "Serve":
        return self if self.port else self.ready()

    def ready(self) -> "Serve":
        """Wait until it says where it listens."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        if found is None:
            raise RuntimeError(f"not ready: {line!r} {self.end()}")
        self.port = int(found[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def workers(self) -> dict[str, psutil.Process]:
        """Its workers' processes, by their names."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                name = re.search(r"/(w\d)\.sock", " ".join(child.cmdline()))
                if name is not None:
                    found[name[1]] = child
        return found

    def end(self) -> str:
        """Ask it to end; what it has logged."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=30)
        return err

    async def ask(self, body: dict[str, Any], path: str = "/v1/completions") -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        sent = {"model": MODEL, **body} if body else b""
        writer.write(request_bytes("POST" if body else "GET", path, sent, {"connection": "close"}))
        try:
            return await read_answer(reader)
        finally:
            writer.close()

    async def metric(self, name: str) -> float:
        """The sum over the samples of a metric."""
        page = (await self.ask({}, "/metrics")).body.decode()
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))

    async def stream(self, body: dict[str, Any]) -> "Streaming":
        found = Streaming(*await asyncio.open_connection("127.0.0.1", self.port))
        body = {"model": MODEL, **body, "stream": True}
        found.writer.write(request_bytes("POST", "/v1/completions", body, {"connection": "close"}))
        head = await found.reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head:
            raise RuntimeError(f"{head!r} {await found.reader.read()!r}")
        return found


class Streaming:
    """A streamed completion that is being read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.texts: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self.usage: Any = None
        self.error = ""
        self.logprobs = 0

    async def read(self, chunks: int | None = None) -> "Streaming":
        """Read so many events, or all that are to come, after which the connection is closed."""
        while chunks is None or chunks > 0:
            line = await self.reader.readline()
            if not line:
                self.writer.close()
                break
            if line.startswith(b"data: {"):
                self._take(json.loads(line[6:]))
                chunks = None if chunks is None else chunks - 1
        return self

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event["error"]["message"]
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", ()):
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            if choice["finish_reason"]:
                self.reasons[index] = choice["finish_reason"]
            self.logprobs += len((choice.get("logprobs") or {}).get("tokens", ()))
