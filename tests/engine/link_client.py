"""A gateway's end of the link, blocking and simple: what the worker's tests speak to a real worker process with."""

import os
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from engine.link import (
    Abort,
    Failed,
    FrameReader,
    Hello,
    Load,
    Output,
    Progress,
    Sampling,
    Step,
    Submit,
    ToGateway,
    ToWorker,
    decode_to_gateway,
    frame,
)

Message = TypeVar("Message", bound=ToGateway)


class LinkClient:
    """Connects to the worker at ``path``, waiting for it to listen."""

    def __init__(self, path: Path, process: "subprocess.Popen[str] | None" = None, timeout: float = 60) -> None:
        self.seen: list[ToGateway] = []
        self._reader = FrameReader()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._sock.connect(str(path))
                return
            except OSError:
                if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                    self._sock.close()
                    raise
                time.sleep(0.02)

    def __enter__(self) -> "LinkClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def send(self, message: ToWorker) -> None:
        self._sock.sendall(frame(message))

    def submit(self, number: int, tokens: Sequence[int], sampling: Sampling) -> None:
        self.send(Submit(number, array("i", tokens).tobytes(), sampling))

    def abort(self, *numbers: int) -> None:
        self.send(Abort(list(numbers)))

    def wait_for(self, kind: type[Message], until: Callable[[Message], bool] = lambda message: True) -> Message:
        """Read on until a message of this kind satisfies ``until``; all that is read is kept in ``seen``.

        Raises:
            ConnectionError: the worker closed the connection first.
            TimeoutError: nothing came for the client's timeout.
        """
        while True:
            data = self._sock.recv(1 << 20)
            if not data:
                raise ConnectionError("the worker closed the connection")
            fresh = [decode_to_gateway(payload) for payload in self._reader.feed(data)]
            self.seen += fresh
            for message in fresh:
                if isinstance(message, kind) and until(message):
                    return message

    def hello(self) -> Hello:
        return self.wait_for(Hello)

    def outputs(self, number: int) -> list[Output]:
        """What came for one request so far."""
        steps = [message for message in self.seen if isinstance(message, Step)]
        return [output for step in steps for output in step.outputs if output.id == number]

    def answer(self, number: int) -> list[Output]:
        """Wait for a request's end; its outputs.

        Raises:
            AssertionError: it failed.
        """
        while True:
            outputs = self.outputs(number)
            if outputs and outputs[-1].finish is not None:
                return outputs
            for message in self.seen:
                if isinstance(message, Failed) and message.id == number:
                    raise AssertionError(message)
            before = len(self.seen)
            while len(self.seen) == before:
                self.wait_for_any()

    def wait_for_any(self) -> None:
        self.wait_for(object, lambda message: True)  # type: ignore[type-var]

    def idle(self) -> Load:
        """Wait for a load report that says that nothing waits or runs."""
        return self.wait_for(Load, lambda load: load.waiting == load.running == 0)


def tokens_of(outputs: Sequence[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def progress_of(client: LinkClient) -> list[Progress]:
    return [message for message in client.seen if isinstance(message, Progress)]


def start_worker(model: Path | None, path: Path, *options: str, threads: int = 1) -> "subprocess.Popen[str]":
    """A real worker process that listens at ``path``."""
    command = [sys.executable, "-m", "engine", *([str(model)] if model else []), "--listen", f"unix:{path}"]
    command += ["--threads", str(threads), "--parent-pid", str(os.getpid()), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
