"""How are workers and routers started, watched and ended? Each is a process, with a log file of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.routers.sides import Ports, Side, Upstream

MODEL: Final = "simulated"
_START: Final = 60.0  # seconds that a process may take to answer
_GRACE: Final = 10.0
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class FleetError(Exception):
    """A process that didn't start or didn't last; the message has the end of its log."""


class Used(NamedTuple):
    """What a process and its children have used: CPU seconds, and resident memory now, in bytes."""

    cpu: float
    memory: int


class Process:
    """A process of its own process group, which has ended when the context is left."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def used(self) -> Used:
        """What it has used so far."""
        cpu = memory = 0
        for fields in _stats():
            if int(fields[2]) == self._process.pid:  # its process group
                cpu += sum(map(int, fields[11:15]))
                memory += int(fields[21])
        return Used(cpu / _TICK, memory * _PAGE)

    def check(self) -> None:
        """Raise a `FleetError` if it has ended."""
        status = self._process.poll()
        if status is not None:
            tail = self._log.read_text(errors="replace")[-1500:]
            raise FleetError(f"{' '.join(map(str, self._process.args))} ended with status {status}:\n{tail}")  # type: ignore[arg-type]

    def wait_for(self, answers: Callable[[], bool]) -> None:
        """Until ``answers`` is true.

        Raises:
            FleetError: the process ended, or a minute passed.
        """
        until = time.monotonic() + _START
        while not answers():
            self.check()
            if time.monotonic() > until:
                raise FleetError(f"no answer within {_START:g} s:\n{self._log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.1)

    def end(self) -> None:
        """End it and its children."""
        for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
                return


class Worker(NamedTuple):
    """A simulated worker that runs."""

    process: Process
    upstream: Upstream

    def metric(self, name: str) -> float:
        """A number of its metrics page, by the name of the sample."""
        page = _get(f"{self.upstream.url}/metrics").decode()
        for line in page.splitlines():
            if line.startswith(f"{name}{{") or line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise FleetError(f"{self.upstream.url}/metrics has no {name}")


@contextlib.contextmanager
def workers(count: int, options: Sequence[str], folder: Path) -> Iterator[list[Worker]]:
    """So many simulated workers, with these options and empty caches."""
    with contextlib.ExitStack() as running:
        started = []
        for number in range(count):
            port, events, replays = free_ports(3)
            ours = Upstream(f"http://127.0.0.1:{port}", *(f"tcp://127.0.0.1:{one}" for one in (events, replays)))
            command = [sys.executable, "-m", "penstock", "bench", "worker", "--port", str(port), "--model", MODEL]
            command += ["--kv-events", ours.events, "--kv-replay", ours.replays, *options]
            process = Process(command, folder / f"worker-{number}.log")
            running.callback(process.end)
            started.append(Worker(process, ours))
        for worker in started:
            worker.process.wait_for(lambda url=worker.upstream.url: _answers(f"{url}/health"))  # type: ignore[misc]
        yield started


@contextlib.contextmanager
def router(side: Side, workers: Sequence[Worker], folder: Path) -> Iterator[tuple[Process, str]]:
    """A router in front of the workers: its process and its URL, once it has answered a chat."""
    ports = Ports(*free_ports(2))
    url = f"http://127.0.0.1:{ports.main}"
    process = Process(
        side.command([worker.upstream for worker in workers], ports), folder / f"{side.name.replace(' ', '-')}.log"
    )
    try:
        process.wait_for(lambda: _answers(f"{url}/v1/chat/completions", _HELLO))
        yield process, url
    finally:
        process.end()


_HELLO: Final = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":1}}'.encode()


def _stats() -> Iterator[list[str]]:
    """What /proc says of each process, from its state on (the third field of proc(5)'s ``stat``)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                stat = (entry / "stat").read_text()
                # The command, in brackets, may hold spaces and brackets.
                yield stat[stat.rindex(")") + 2 :].split()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _answers(url: str, body: bytes | None = None) -> bool:
    try:
        _get(url, body)
    except OSError:  # refused, reset, timed out, or any status that is an error
        return False
    return True


def _get(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        error.close()
        raise
