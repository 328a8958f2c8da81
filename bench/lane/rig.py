"""How are upstreams, a gateway and a load generator set up on two cores? The rig is in C, and faster than all of them.

The gateway has one core, the upstreams and the load generator the other. The rig's sources are given by a folder: see
the README there.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

GATEWAY_CORE: Final = "0"
LOAD_CORE: Final = "1"
KEY: Final = "sk-bench"
UPSTREAMS: Final = 8
_CHAT: Final = "/v1/chat/completions"
_READY: Final = 20.0


class Rig:
    """The built programs, and the bodies of requests.

    Args:
        sources: the folder with ``mock.c``, ``lg.c`` and the bodies.
        folder: where to build; it should be temporary.

    Raises:
        subprocess.CalledProcessError: there is no compiler, or it fails.
    """

    def __init__(self, sources: Path, folder: Path) -> None:
        self._folder = folder
        for name in ("mock", "lg"):
            subprocess.run(["gcc", "-O2", "-w", "-o", folder / name, sources / f"{name}.c"], check=True)
        self.bodies = {name: sources / f"{name}.json" for name in ("ns", "s_20", "s_5")}
        small = self.bodies["ns"].read_bytes()
        sentence = b"You are a helpful assistant. "
        self.bodies["64k"] = folder / "64k.json"
        self.bodies["64k"].write_bytes(small.replace(sentence, sentence * 74))

    @contextlib.contextmanager
    def upstreams(self, count: int = UPSTREAMS) -> Iterator[list[int]]:
        """So many upstreams; their ports."""
        ports = [free_port() for _ in range(count)]
        mocks = [
            subprocess.Popen(["taskset", "-c", LOAD_CORE, self._folder / "mock", str(port), os.devnull])
            for port in ports
        ]
        try:
            for port in ports:
                wait_for(port)
            yield ports
        finally:
            for mock in mocks:
                mock.kill()
                mock.wait()

    def load(
        self,
        port: int,
        body: str,
        *,
        connections: int,
        seconds: float,
        pid: int | None = None,
        stream: bool = False,
        rate: float | None = None,
        warm: float = 1.0,
    ) -> dict[str, Any]:
        """What the load generator measured: times in microseconds. For ``warm`` seconds before that it doesn't measure.

        ``rate``: so many requests come a second, whether those before them are answered or not; None: a connection
        has the next one as soon as the last one is answered.
        """
        command = [
            "taskset", "-c", LOAD_CORE, str(self._folder / "lg"), "-p", str(port), "-P", _CHAT,
            "-b", str(self.bodies[body]), "-c", str(connections), "-d", str(seconds), "-w", str(warm),
            "-H", f"Authorization: Bearer {KEY}", *(["-s"] if stream else []), *(["-g", str(pid)] if pid else []),
            *(["-r", str(rate)] if rate is not None else []),
        ]  # fmt: skip
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found


@contextlib.contextmanager
def gateway(command: Sequence[str], ready: str) -> Iterator[subprocess.Popen[str]]:
    """A gateway on its core, once it has printed a line with ``ready`` in it.

    Raises:
        RuntimeError: it ended instead.
    """
    process = _on_gateways_core([sys.executable, "-m", *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if ready not in line:
            raise RuntimeError(f"{' '.join(command)} did not start: {line!r}")
        yield process
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def router(command: Sequence[str], port: int, body: bytes) -> Iterator[subprocess.Popen[str]]:
    """Somebody else's gateway on the gateways' core, once it answers ``body`` with status 200.

    Raises:
        RuntimeError: it ended instead, or doesn't answer.
    """
    process = _on_gateways_core(command, stdout=subprocess.DEVNULL)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{_CHAT}", body, {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    )
    deadline = time.monotonic() + _READY
    try:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2.0) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.2)
        else:
            raise RuntimeError(f"{' '.join(command)} did not answer")
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def _on_gateways_core(command: Sequence[str], stdout: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["taskset", "-c", GATEWAY_CORE, *command],
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"BENCH_KEY": KEY},
    )


def ours(port: int, upstreams: Sequence[int]) -> list[str]:
    """The command of a gateway with everything on."""
    urls = [word for one in upstreams for word in ("--upstream", f"http://127.0.0.1:{one}")]
    return ["penstock", "serve", "--port", str(port), "--api-key-env", "BENCH_KEY", *urls]


def memory(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Return once somebody listens on a port.

    Raises:
        RuntimeError: nobody does.
    """
    deadline = time.monotonic() + _READY
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nobody listens on port {port}")
