"""What does the gateway know of one worker: is it there, what can it do, how busy is it?

A `Worker` outlives the process behind it: when that dies and another takes its place, the link is a new one and the
`Worker` is the same.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from engine.link import Blocks, Drain, Hello, Load, Progress
from gateway.fleet.native import OutputStream, WorkerLink, WorkerLost, connect
from gateway.telemetry.metrics import Metrics

_NO_LOAD: Final = Load(waiting=0, running=0, waiting_tokens=0, kv_used=0, kv_total=0, backlog=0.0)
_MISSED: Final = 4  # signs of life, after which a worker gets no new requests

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who is told what becomes of workers. Every call comes from the event loop."""

    def worker_up(self, worker: "Worker") -> None:
        """A process of it has said what it is, and takes requests."""

    def worker_changed(self, worker: "Worker") -> None:
        """It takes requests now, or doesn't, unlike before."""

    def worker_reported(self, worker: "Worker") -> None:
        """It has said how busy it is."""

    def worker_cached(self, worker: "Worker", blocks: Blocks) -> None:
        """Its prefix cache has changed."""

    def worker_down(self, worker: "Worker") -> None:
        """Its process, or the link to it, has gone; what it had is handed back after this."""


class Worker:
    """One worker, by whatever link it is connected just now.

    Args:
        name: for log lines and metrics; there are few workers, so it may be a label.
        metrics: where its load is shown.
        on_progress: told how the loading goes.
        watcher: told what becomes of it.
    """

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        on_progress: Callable[[Progress], None] | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.name = name
        self.hello: Hello | None = None
        self.load: Load | None = None
        self.state = "starting"
        self.reason = ""
        self.greeted = asyncio.Event()
        self.settled = asyncio.Event()
        """Set once it has all that it needs for requests, or can't have it."""
        self.preparing = False
        """Whether its watcher still gives it what it needs, and will set `settled`."""
        self.lost = asyncio.Event()
        self.watcher = watcher
        self._metrics = metrics
        self._on_progress = on_progress
        self._link: WorkerLink | None = None
        self._suspect = False
        self._draining = False
        metrics.worker_up(name, False)

    @property
    def link(self) -> WorkerLink | None:
        """The link, once the worker has said over it what it is."""
        link = self._link
        return link if link is not None and link.hello is not None else None

    @property
    def ready(self) -> bool:
        """Whether requests can be submitted."""
        return self.link is not None and not self._suspect and not self._draining

    @property
    def was_greeted(self) -> bool:
        """Whether the process connected last has said what it is."""
        return self.greeted.is_set()

    @property
    def requests(self) -> int:
        """How many requests of ours it has."""
        return self._link.requests if self._link is not None else 0

    @property
    def backlog(self) -> float:
        """Seconds until the prompts at hand are computed, by the worker's own prediction."""
        return self.load.backlog if self.load else 0.0

    async def connect(self, address: str, secret: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        """Connect to the process that listens on ``address``; `greeted` is set once it says `Hello`.

        Raises:
            OSError: nobody listens there (yet).
        """
        self.lost.clear()
        self.greeted.clear()
        self.settled.clear()
        link = await connect(address, self, secret, tls)
        self._link = link if link.connected else None  # it may have been lost meanwhile

    def open(self) -> OutputStream:
        """A stream of requests to this worker alone, which are lost with it: `Fleet.open` is the one that survives.

        Raises:
            WorkerLost: the worker can't take requests now; the message says why.
        """
        if self.link is None:
            raise WorkerLost(f"the worker is {self.state}")
        return self.link.open()

    def interrupt_all(self, make_reason: Callable[[], BaseException]) -> None:
        """Abort every request, and raise a reason in each task that waits for one."""
        if self._link is not None:
            self._link.interrupt_all(make_reason)

    def drain(self) -> None:
        """Tell the worker to finish what it has and exit."""
        self.state = "shutting down"
        if self._link is not None:
            self._link.send(Drain())
            self.leave()

    def leave(self) -> None:
        """Give it no new requests any more, until another process takes its place."""
        self._draining = True
        self._changed()

    def close(self) -> None:
        """Give the connection up; requests still running are lost here."""
        if self._link is not None:
            self._link.close()

    def check(self, now: float, lost_after: float) -> None:
        """Look whether it has been silent for longer than it promised to be; ``now`` is the event loop's clock.

        A worker promises nothing before its `Hello`. Of one on this host the system says when it has gone; of one
        elsewhere nothing may ever be heard again, and to connect anew costs nothing.
        """
        link = self._link
        if link is None:
            return
        silent = now - link.heard
        if link.hello is None:
            if link.remote and silent > lost_after:
                link.give_up(f"it said nothing for {lost_after:g} s, and hadn't said yet that it is ready")
            return
        if not link.hello.heartbeat:
            return
        if silent > lost_after:
            log.error("worker=%s has been silent for %.1f s: taking it for lost", self.name, silent)
            link.give_up(f"the worker was silent for {silent:.1f} s")
        elif (silent > _MISSED * link.hello.heartbeat) != self._suspect:
            self._suspect = not self._suspect
            if self._suspect:
                log.warning("worker=%s has been silent for %.1f s: no new requests for it", self.name, silent)
            self._changed()

    def on_progress(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)

    def on_hello(self, link: WorkerLink, hello: Hello) -> None:
        self._link = link  # `connect` may not have returned yet
        self.hello = hello
        self.state = "running"
        self._suspect = self._draining = False
        self._metrics.worker_up(self.name, True)
        self.greeted.set()
        self.preparing = False
        if self.watcher is not None:
            self.watcher.worker_up(self)
        if not self.preparing:
            self.settled.set()

    def on_load(self, load: Load) -> None:
        if load == self.load:
            return  # a sign of life, no news
        self.load = load
        self._metrics.watch_worker(self.name, load)
        if load.draining and not self._draining:
            self.state = "shutting down"
            self.leave()
        if self.watcher is not None:
            self.watcher.worker_reported(self)

    def on_blocks(self, blocks: Blocks) -> None:
        if self.watcher is not None:
            self.watcher.worker_cached(self, blocks)

    def on_lost(self, link: WorkerLink, reason: str) -> None:
        log.debug("worker=%s lost: %s", self.name, reason)
        self._link = None
        self.load = None
        self._metrics.worker_up(self.name, False)
        self._metrics.watch_worker(self.name, _NO_LOAD)
        if self.state != "shutting down":
            self.state = "restarting"
        self.reason = reason
        self.lost.set()
        if link.hello is not None and self.watcher is not None:
            self.watcher.worker_down(self)

    def _changed(self) -> None:
        if self.link is not None:
            self._metrics.worker_up(self.name, self.ready)
            if self.watcher is not None:
                self.watcher.worker_changed(self)
