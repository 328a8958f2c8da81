"""``penstock serve`` as a process of its own, for the tests that want the real thing."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType

import httpx2
import psutil
from openai import OpenAI

REPOSITORY = Path(__file__).parent.parent


class Serving:
    """A running ``penstock serve``: leaving the context stops it.

    Raises:
        AssertionError: it ended, or did not get ready within ``timeout`` seconds; what it said is in the message.
    """

    def __init__(self, *words: str, timeout: float = 120, folder: Path = REPOSITORY) -> None:
        self._state = tempfile.TemporaryDirectory()  # not the user's own files and batches
        command = [sys.executable, "-m", "penstock", "serve", "--port", "0", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, bufsize=1,
            env={**os.environ, "XDG_STATE_HOME": self._state.name},
        )  # fmt: skip
        self.said: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert self.process.stdout is not None
        killer = threading.Timer(timeout, self.process.kill)
        killer.start()
        self.ready_line = self.process.stdout.readline()
        killer.cancel()
        found = re.search(r"http://[\w.:\[\]]+", self.ready_line)
        if found is None:
            self.process.kill()
            self._listener.join(5)
            raise AssertionError(f"not ready: {self.ready_line!r}\n" + "".join(self.said))
        self.url = found[0]

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._listener.join(5)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        self._state.cleanup()

    def client(self, **options: float) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=options.get("timeout", 60))

    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    def worker(self) -> psutil.Process:
        """The worker process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def metric(self, name: str) -> float:
        """The sum over all label sets of a metric on the Prometheus page; 0 where it has none yet."""
        page = httpx2.get(f"{self.url}/metrics").text
        values = re.findall(rf"^{name}(?:{{.*}})? ([\d.e+-]+)$", page, re.MULTILINE)
        return sum(map(float, values))
