"""What does the gateway know of one worker: is it there, what can it do, how busy is it?

A `Worker` outlives the process behind it: when that dies and another takes its place, the link is a new one and the
`Worker` is the same.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from engine.link import Hello, Load, Progress
from gateway.fleet.native import OutputStream, WorkerLink, WorkerLost, connect
from gateway.telemetry.metrics import Metrics

_NO_LOAD: Final = Load(waiting=0, running=0, waiting_tokens=0, kv_used=0, kv_total=0, backlog=0.0)

log = logging.getLogger(__name__)


class Worker:
    """One worker, by whatever link it is connected just now.

    Args:
        name: for log lines and metrics; there are few workers, so it may be a label.
        metrics: where its load is shown.
        on_progress: told how the loading goes.
    """

    def __init__(self, name: str, metrics: Metrics, on_progress: Callable[[Progress], None] | None = None) -> None:
        self.name = name
        self.hello: Hello | None = None
        self.load: Load | None = None
        self.state = "starting"
        self.greeted = asyncio.Event()
        self.lost = asyncio.Event()
        self._metrics = metrics
        self._on_progress = on_progress
        self._link: WorkerLink | None = None
        metrics.worker_up(name, False)

    @property
    def ready(self) -> bool:
        """Whether requests can be submitted."""
        return self._link is not None and self._link.hello is not None

    @property
    def backlog(self) -> float:
        """Seconds until the prompts at hand are computed, by the worker's own prediction."""
        return self.load.backlog if self.load else 0.0

    async def connect(self, address: str) -> None:
        """Connect to the process that listens on ``address``; `greeted` is set once it says `Hello`.

        Raises:
            OSError: nobody listens there (yet).
        """
        self.lost.clear()
        self._link = await connect(address, self)

    def open(self) -> OutputStream:
        """A stream to submit requests to.

        Raises:
            WorkerLost: the worker can't take requests now; the message says why.
        """
        if self._link is None or self._link.hello is None:
            raise WorkerLost(f"the worker is {self.state}")
        return self._link.open()

    def interrupt_all(self, make_reason: Callable[[], BaseException]) -> None:
        """Abort every request, and raise a reason in each task that waits for one."""
        if self._link is not None:
            self._link.interrupt_all(make_reason)

    def drain(self) -> None:
        """Tell the worker to finish what it has and exit."""
        self.state = "shutting down"
        if self._link is not None:
            self._link.drain()

    def close(self) -> None:
        """Give the connection up; requests still running fail."""
        if self._link is not None:
            self._link.close()

    def on_progress(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)

    def on_hello(self, link: WorkerLink, hello: Hello) -> None:
        self.hello = hello
        self.state = "running"
        self._metrics.worker_up(self.name, True)
        self.greeted.set()

    def on_load(self, load: Load) -> None:
        self.load = load
        self._metrics.watch_worker(self.name, load)

    def on_lost(self, link: WorkerLink, reason: str) -> None:
        log.debug("worker=%s lost: %s", self.name, reason)
        self._link = None
        self.load = None
        self._metrics.worker_up(self.name, False)
        self._metrics.watch_worker(self.name, _NO_LOAD)
        if self.state != "shutting down":
            self.state = "restarting"
        self.lost.set()
